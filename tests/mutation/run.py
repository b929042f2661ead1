"""Mutates a copy of the tree, one place at a time, and counts the mutants that the module's own tests see.

    make mutate [MUTANTS=200] [AGAIN=1]

What was run stands in runs/mutate/session.sqlite, a session of cosmic-ray's, so that a run that was stopped goes on
where it was; a mutant is run again when its module changes, and with AGAIN=1 if it survived. Equivalent mutants are
those of `equivalent.py`.
"""

import argparse
import collections
import contextlib
import hashlib
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkItem, WorkResult

from tests.mutation.areas import AREAS
from tests.mutation.equivalent import reason_of
from tests.mutation.sample import sampled

SECONDS = 120
"""For the tests of one mutant; one that takes longer counts as seen, as it would stop whoever runs them."""
AIM = 0.9
FOLDER = Path("runs/mutate")
Selection = tuple[str, ...]
TESTS: dict[str, tuple[str, Selection]] = {
    module: (area, tests) for area, modules in AREAS.items() for module, tests in modules.items()
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is left of the sample and prints the score; the exit status is 1 where a module's tests fail
    unmutated, so that nothing can be said of its mutants, and where the score misses the aim."""
    parser = argparse.ArgumentParser(description="Runs a sample of mutants against their modules' tests.")
    parser.add_argument("--mutants", type=int, default=200, help="how many of all areas together")
    parser.add_argument("--seed", type=int, default=0, help="of the lot that picks them")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with a copy of the tree")
    parser.add_argument("--again", action="store_true", help="run those again that survived")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    mutants = {_job(m): m for m in sampled(options.mutants, options.seed)}
    with use_db(str(FOLDER / "session.sqlite")) as session:
        _run(session, mutants, options.workers, options.again)
        return _report(session, mutants)


def _run(session: WorkDB, mutants: dict[str, MutationSpec], workers: int, again: bool) -> None:
    done = dict(session.results)
    known = {item.job_id for item in session.work_items}
    left = [
        job
        for job in mutants
        if job not in done or (again and _outcome(mutants[job], done[job]) == "survived")
    ]
    selections = dict.fromkeys(TESTS[str(mutants[job].module_path)][1] for job in left)
    whole = {job: m for job, m in map(_unmutated, selections) if job not in done}
    session.add_work_items(
        WorkItem.single(job, m) for job, m in {**whole, **mutants}.items() if job not in known
    )
    queue = [*whole.items(), *((job, mutants[job]) for job in left)]
    with _pool(min(workers, max(1, len(queue)))) as pool:
        running: dict[Future[WorkResult], tuple[str, float]] = {}
        began, finished = time.monotonic(), 0
        try:
            waiting = iter(queue)
            while True:
                for job, mutant in waiting:
                    running[pool.submit(_try, mutant)] = job, time.monotonic()
                    if len(running) == workers:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    (job, start), result = running.pop(future), future.result()
                    session.set_result(job, result)
                    finished += 1
                    minutes = (time.monotonic() - began) / finished * (len(queue) - finished) / 60
                    took = time.monotonic() - start
                    mutant = dict(queue)[job]
                    print(
                        f"[{finished}/{len(queue)}] {_outcome(mutant, result):10} {took:3.0f} s  "
                        f"{_place(mutant)}; {minutes:.0f} minutes left",
                        flush=True,
                    )
        except KeyboardInterrupt:
            print("Stopping behind the mutants under way; the same command goes on.", file=sys.stderr)
            raise SystemExit(130) from None


def _report(session: WorkDB, mutants: dict[str, MutationSpec]) -> int:
    done = dict(session.results)
    whole = {name: done.get(_unmutated(tests)[0]) for name, (_, tests) in TESTS.items()}
    spoiled = {name: result for name, result in whole.items() if result and not _survived(result)}
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for job, mutant in mutants.items():
        name = str(mutant.module_path)
        if job in done and name not in spoiled:
            outcome = _outcome(mutant, done[job])
            counts[TESTS[name][0]][outcome] += 1
            if outcome == "survived":
                print(f"\n{_place(mutant)}\n{done[job].diff}")
    for name, result in spoiled.items():
        print(
            f"\nThe tests of {name} fail or take over {SECONDS // 2} s unmutated:\n{(result.output or '')[-1500:]}"
        )
    print(f"\n{'':12}{'killed':>10}{'too slow':>10}{'survived':>10}{'equivalent':>12}{'score':>8}")
    total = sum(counts.values(), collections.Counter())
    for area, found in [*counts.items(), ("all", total)]:
        row = [found[kind] for kind in ("killed", "too slow", "survived", "equivalent")]
        print(f"{area:12}{row[0]:10}{row[1]:10}{row[2]:10}{row[3]:12}{_score(found):8.1%}")
    print(f"{total.total()} of {len(mutants)} mutants; the aim is {AIM:.0%}")
    return int(bool(spoiled) or _score(total) < AIM)


def _score(found: collections.Counter[str]) -> float:
    seen = found["killed"] + found["too slow"]
    return seen / max(1, seen + found["survived"])


def _outcome(mutant: MutationSpec, result: WorkResult) -> str:
    if not _survived(result):
        return "too slow" if result.output == "timeout" else "killed"
    if mutant.operator_name == "core/NoOp":
        return "unmutated"
    return "equivalent" if reason_of(str(mutant.module_path), result.diff or "") else "survived"


def _survived(result: WorkResult) -> bool:
    if result.test_outcome is None or result.test_outcome == TestOutcome.INCOMPETENT:
        raise RuntimeError(f"cosmic-ray could not run a mutant: {result.output}")
    return result.test_outcome == TestOutcome.SURVIVED


def _place(mutant: MutationSpec) -> str:
    line, column = mutant.start_pos
    return f"{mutant.module_path}:{line}:{column + 1} {mutant.operator_name.removeprefix('core/')}"


def _job(mutant: MutationSpec) -> str:
    """A name of the mutant that is another when its module changes."""
    content = hashlib.sha256(Path(mutant.module_path).read_bytes()).hexdigest()[:12]
    return f"{mutant.module_path} {content} {mutant.operator_name} {mutant.occurrence}"


def _unmutated(tests: Selection) -> tuple[str, MutationSpec]:
    """A run of tests on their modules as they are: named anew when one of these files changes."""
    modules = [name for name, (_, own) in TESTS.items() if own == tests]
    files = [*modules, *(test for test in tests if test.endswith(".py"))]
    content = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()[:12]
    return f"{' '.join(tests)} {content}", MutationSpec(modules[0], "core/NoOp", 0, (1, 0), (1, 1))


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that stand in a copy of the tree each; what is compiled they share."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str((FOLDER / "compiled").absolute())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    trees = [(FOLDER / f"tree{number}").absolute() for number in range(workers)]
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    for tree in trees:
        shutil.rmtree(tree, ignore_errors=True)
        for file in filter(os.path.isfile, files):
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, tree / file)
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for tree in trees:
        free.put(str(tree))
    with ProcessPoolExecutor(workers, context, _stand, (free,)) as pool:
        yield pool


def _stand(free: "multiprocessing.SimpleQueue[str]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(free.get())


def _try(mutant: MutationSpec) -> WorkResult:
    """One mutant's tests, up to the first that fails."""
    tests = TESTS[str(mutant.module_path)][1]
    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--durations=0"]
    seconds = SECONDS // 2 if mutant.operator_name == "core/NoOp" else SECONDS
    return mutate_and_test([mutant], shlex.join([sys.executable, "-m", "pytest", *options, *tests]), seconds)


if __name__ == "__main__":
    sys.exit(main())
