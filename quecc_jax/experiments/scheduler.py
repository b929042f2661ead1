"""Runs jobs that need one another over the machine's cores, resumable job by job.

Under `out/jobs/`: NAME.json is the result of a finished job, NAME.error the traceback of a failed
one, NAME.progress where a running one is.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pkgutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from quecc_jax.errors import UserError
from quecc_jax.paths import write_text
from quecc_jax.xla_flags import ONE_THREAD, with_flags


@dataclasses.dataclass(frozen=True)
class Job:
    """One unit of work; its result appears in `out/jobs/NAME.json` when it is whole."""

    name: str
    function: str
    """`module:name` of a function of (out, plan, *arguments, report) that returns a JSON value. Only
    workers import it: JAX reads the environment that the parent prepares."""
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    cost: float = 1.0
    """Expected share of the work, for the order and for the time left."""
    phase: str = ""


def run_jobs(jobs: list[Job], plan: Any, out: str | Path) -> tuple[list[str], list[str]]:
    """Runs the jobs without a result, the costliest first, as many at once as there are cores.

    Args:
      plan: what every job's function gets besides its own arguments; pickled into the workers.

    Returns:
      Names of the jobs that failed, and of those that were left out because they need one of them.

    Raises:
      UserError: a worker process was killed.
    """
    folder = Path(out, "jobs")
    folder.mkdir(parents=True, exist_ok=True)
    done = {j.name for j in jobs if (folder / f"{j.name}.json").is_file()}
    waiting = sorted((j for j in jobs if j.name not in done), key=lambda j: -j.cost)
    if not waiting:
        return [], []
    count = min(len(cores()), len(waiting))
    failed: list[str] = []
    skipped: list[str] = []
    running: dict[Future, Job] = {}
    context = multiprocessing.get_context("spawn")
    with (
        worker_environment(),
        ProcessPoolExecutor(count, context, start_worker, (context.Value("i", 0),)) as workers,
        Display(jobs, done, folder) as display,
    ):
        try:
            while waiting or running:
                blocked = [j for j in waiting if {*j.needs} & {*failed, *skipped}]
                ready = [j for j in waiting if {*j.needs} <= done]
                for job in ready[: count - len(running)]:
                    running[workers.submit(work, job, plan, str(out))] = job
                skipped += [j.name for j in blocked]
                waiting = [j for j in waiting if j not in blocked and j not in running.values()]
                finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    name, error = running.pop(future).name, future.exception()
                    if isinstance(error, BrokenProcessPool):
                        raise error
                    if error is None:
                        done.add(name)
                    else:
                        failed.append(name)
                    display.finish(name, error)
                display.update([j.name for j in running.values()])
        except BrokenProcessPool:
            raise UserError(
                f"a worker process was killed, perhaps for lack of memory, while {out} was running; "
                "start it again to continue with the jobs that are missing"
            ) from None
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return failed, skipped


def cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def worker_environment() -> Iterator[None]:
    """Processes started inside compute on the CPU with one thread each: small models gain nothing
    from more. They keep the memory that a step frees for the next one, since handing it back to the
    system page by page took a quarter of the time at V = 64 (glibc; others ignore the names)."""
    wanted = {
        "XLA_FLAGS": with_flags(os.environ.get("XLA_FLAGS", ""), ONE_THREAD),
        "JAX_PLATFORMS": "cpu",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TOP_PAD_": str(64 << 20),
    }
    saved = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in saved.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def start_worker(started: Any) -> None:
    """Gives a worker process a core of its own, where the system can, and ends it with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    with started.get_lock():
        number = started.value
        started.value += 1
    if hasattr(os, "sched_setaffinity"):
        own = cores()
        os.sched_setaffinity(0, {own[number % len(own)]})


def leave_with_parent() -> None:
    """Ends this process when its parent is gone, so that no orphan writes beside a new run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def work(job: Job, plan: Any, out: str) -> None:
    """Runs one job in a worker process."""
    try:
        run_job(job, plan, out)
    except BaseException as problem:
        # A sentence crosses to the parent safely; not every exception can be pickled.
        raise RuntimeError(f"{type(problem).__name__}: {problem}") from None


def run_job(job: Job, plan: Any, out: str, reported: Callable[[], None] = lambda: None) -> None:
    """Runs one job here; its result appears whole or not at all, and so does its traceback.

    Args:
      reported: called after every report of the job.
    """
    stem = Path(out, "jobs", job.name)
    state, error = stem.with_name(f"{job.name}.progress"), stem.with_name(f"{job.name}.error")

    def report(done: float, total: float, note: str) -> None:
        write_json(state, {"share": done / total, "note": note})
        reported()

    try:
        started = time.time()
        error.unlink(missing_ok=True)
        report(0, 1, "starting")
        import jax

        jax.config.update("jax_compilation_cache_dir", str(Path(out, "compiled").absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
        result = pkgutil.resolve_name(job.function)(out, plan, *job.arguments, report)
        write_json(stem.with_name(f"{job.name}.json"), {"seconds": time.time() - started, "result": result})
    except BaseException:
        write_text(error, traceback.format_exc())
        raise
    finally:
        state.unlink(missing_ok=True)


class Display:
    """Overall and per-job progress with the time left; a line per finished job in any case."""

    def __init__(self, jobs: list[Job], done: Collection[str], folder: Path):
        self.cost, self.folder = {j.name: j.cost for j in jobs}, folder
        self.ended, self.before = set(done), sum(self.cost[name] for name in done)
        self.started, self.note = time.time(), "starting"
        self.bars: dict[str, TaskID] = {}
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.overall = self.progress.add_task("all", total=1.0, note=self.note)

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, running: list[str]) -> None:
        """Reads where the running jobs are and redraws."""
        reached, total = sum(self.cost[name] for name in self.ended), sum(self.cost.values())
        for name in running:
            share, note = read_progress(self.folder, name)
            if name not in self.bars:
                self.bars[name] = self.progress.add_task(f"  {name}", total=1.0, note=note)
            self.progress.update(self.bars[name], completed=share, note=note)
            reached += self.cost[name] * share
        spent, gained = time.time() - self.started, reached - self.before
        if gained > 0:
            left = spent * (total - reached) / gained
            self.note = f"{clock(spent)} spent, about {clock(left)} left"
        self.progress.update(self.overall, completed=reached / total, note=self.note)

    def finish(self, name: str, error: BaseException | None) -> None:
        """Marks a job as finished or failed and prints a line."""
        self.ended.add(name)
        if name in self.bars:
            self.progress.remove_task(self.bars.pop(name))
        verdict = f"done {name}" if error is None else f"FAILED {name}: {error}"
        counted = f"({len(self.ended)}/{len(self.cost)}; {self.note})"
        self.progress.console.print(f"{verdict} {counted}", highlight=False, markup=False, soft_wrap=True)


def read_progress(folder: Path, name: str) -> tuple[float, str]:
    """How far a job is (0..1) and what it is doing."""
    try:
        state = json.loads((folder / f"{name}.progress").read_text())
    except FileNotFoundError:
        return 0.0, "starting"
    return state["share"], state["note"]


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value))
