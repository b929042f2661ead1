"""Trains and tests a grid of (LLM, V, seed): python -m launch.sweep configs/NAME.py --dry-run

Start the same command on as many hosts as there are; each takes cells that no other has, from the
shared directory. Started again, it goes on with the cells that are missing. Scores are written after
every cell, as `python -m scaling fit --scores OUT/scores.json` takes them.
"""

import dataclasses
import json
import math
import re
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from quecc_jax.commands.config_file import load_file
from quecc_jax.errors import UserError
from quecc_jax.experiments.scheduler import Display, Job, run_job, write_json
from quecc_jax.experiments.study import claim
from quecc_jax.experiments.sweep_plan import (
    Cell,
    Sweep,
    cell_flops,
    cells,
    llm_of,
    score_names,
    size_b,
    stage_configs,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains and tests every (LLM, V, seed) of a sweep."""

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.py")]
    """A file with `sweep() -> Sweep`, such as configs/llava_sweep.py."""
    dry_run: bool = False
    """Print cells, FLOPs and hours, and train nothing."""
    topology: str = "v5e-64"
    """Dry run: a chip and how many of them, such as v5e-64 or h100-8."""
    mfu: float = 0.4
    """Dry run: share of the chips' peak that training is taken to reach."""
    shard: str = ""
    """I/N takes only every N-th cell, from the I-th (0 .. N - 1) on; without it hosts share all cells."""
    out: str = ""
    """Directory in place of the sweep's own."""


class Outcome(NamedTuple):
    """Cells by what became of them; `elsewhere` are being run by another process."""

    done: list[str]
    failed: list[str]
    elsewhere: list[str]


def run(options: Options) -> None:
    """Trains and tests the cells that are missing, or says what they would take."""
    sweep = load_file(options.config, "sweep", Sweep)
    sweep = dataclasses.replace(sweep, out=options.out) if options.out else sweep
    chosen = sharded(cells(sweep), options.shard)
    if options.dry_run:
        print(dry_run(sweep, chosen, options.topology, options.mfu))
        return
    outcome = run_sweep(sweep, chosen)
    scores = Path(sweep.out, "scores.json")
    print(f"{len(outcome.done)} of {len(chosen)} cells done; scores: {scores}")
    if outcome.elsewhere:
        print(f"running elsewhere: {', '.join(outcome.elsewhere)}")
    if outcome.failed:
        files = ", ".join(str(Path(sweep.out, "jobs", f"{name}.error")) for name in outcome.failed)
        raise UserError(f"failed: {', '.join(outcome.failed)}; see {files}, then start it again to retry")
    print(f"python -m scaling fit --scores {scores} --out {sweep.out}/law")


def sharded(every: list[Cell], shard: str) -> list[Cell]:
    """The cells of `--shard I/N`.

    Raises:
      UserError: it does not read I/N with I below N.
    """
    if not shard:
        return every
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {shard} is not I/N with I from 0 to N - 1, such as 0/4")
    return every[int(match[1]) :: int(match[2])]


def run_sweep(sweep: Sweep, chosen: list[Cell]) -> Outcome:
    """Runs the chosen cells that have no result and that no other process runs, one after another.

    A cell that fails leaves its traceback in `jobs/NAME.error`, and the rest goes on.

    Raises:
      UserError: `out` holds another sweep's results.
      Preempted: SIGTERM came; the cell in progress is saved.
    """
    from quecc_jax.train.lock import InUse, run_lock
    from quecc_jax.train.preemption import Preempted

    folder, began = Path(sweep.out), time.time()
    claim(folder, sweep)
    (folder / "jobs").mkdir(exist_ok=True)
    jobs = [Job(c.name, "quecc_jax.commands.sweep:run_cell", (c,), cost=cell_flops(sweep, c)) for c in chosen]
    done = {job.name for job in jobs if result_file(sweep, job.name).is_file()}
    outcome = Outcome(sorted(done), [], [])
    write_scores(sweep)
    with Display(jobs, done, folder / "jobs") as display:
        for job in (job for job in jobs if job.name not in done):
            try:
                with run_lock(f"{sweep.out}/cells/{job.name}"):
                    error = _failed_elsewhere(sweep, job, began) or _attempt(job, sweep, display)
            except InUse:
                outcome.elsewhere.append(job.name)
                continue
            except Preempted:
                (folder / "jobs" / f"{job.name}.error").unlink(missing_ok=True)
                raise
            (outcome.done if error is None else outcome.failed).append(job.name)
            write_scores(sweep)
            display.finish(job.name, error)
    return outcome


def _attempt(job: Job, sweep: Sweep, display: Display) -> Exception | None:
    """Runs a cell that has no result yet; returns what went wrong."""
    from quecc_jax.train.preemption import Preempted

    try:
        if not result_file(sweep, job.name).is_file():
            run_job(job, sweep, sweep.out, lambda: display.update([job.name]))
    except Preempted:
        raise
    except Exception as problem:
        return problem
    return None


def _failed_elsewhere(sweep: Sweep, job: Job, began: float) -> Exception | None:
    """What another process met in this cell since this one began; a cell is not tried twice at a time."""
    error = Path(sweep.out, "jobs", f"{job.name}.error")
    try:
        told = error.read_text().strip().splitlines()[-1] if error.stat().st_mtime > began else ""
    except OSError:
        return None
    return RuntimeError(told) if told else None


def result_file(sweep: Sweep, name: str) -> Path:
    """Where a finished cell's result lies."""
    return Path(sweep.out, "jobs", f"{name}.json")


def run_cell(out: str, sweep: Sweep, cell: Cell, report: Any) -> dict[str, Any]:
    """Stage 1, stage 2, then the tests: scores in 0..1 and their standard errors, by test."""
    from quecc_jax.experiments.jobs import run_stage

    runs = stage_configs(sweep, cell)
    total = 1.05 * sum(run.train.steps for run in runs)
    losses, before = {}, 0
    for stage, run in enumerate(runs, 1):
        curve = run_stage(run, report, before, total, f"stage {stage}")
        before += run.train.steps
        losses[f"stage{stage}"] = curve[-1][1] if curve else None
    report(before, total, "tests")
    return {
        **dataclasses.asdict(cell),
        "params_b": size_b(llm_of(sweep, cell)),
        "loss": losses,
        "scores": tested(sweep, runs[-1].out),
    }


def tested(sweep: Sweep, run: str) -> dict[str, dict[str, float]]:
    """Score and standard error of a trained run on every test and benchmark."""
    from quecc_jax.evaluate import benchmarks
    from quecc_jax.evaluate.predict import predict
    from quecc_jax.evaluate.score import accuracy, standard_error
    from quecc_jax.load import load_vlm

    found = {}
    if sweep.tests:
        config, params = load_vlm(run)
        for test in sweep.tests:
            data = dataclasses.replace(
                config.data, sources=(test.source,), cached_features=False, cached_queries=False
            )
            answers = predict(
                config.model, data, params, max_new_tokens=test.max_new_tokens, batch_size=sweep.batch_size
            )
            share, count = accuracy(answers, lambda _: "all")["all"]
            found[test.name] = {
                "score": share,
                "stderr": standard_error(share, count),
                "cut_questions": sum(one.question_cut for one in answers),
            }
    if sweep.benchmarks:
        results = benchmarks.run(
            Path(run),
            sweep.benchmarks,
            Path(sweep.benchmark_data),
            Path(run, "benchmarks"),
            name="",
            limit=None,
            max_new_tokens=None,
            batch_size=sweep.batch_size,
            seed=0,
            html=False,
        )
        for name, task in results["tasks"].items():
            if task["headline"] is None:
                raise UserError(f"benchmark {name} is scored by a server; take it out of the sweep")
            metric = task["metrics"][task["headline"]]
            # MME's perception counts to 2,000, all others in percent.
            top = 2000.0 if name == "mme" else 100.0
            error = metric["standard_error"] or 0.0
            found[name] = {"score": metric["value"] / top, "stderr": error / top}
    return found


def write_scores(sweep: Sweep) -> None:
    """Writes scores.json from all finished cells, whatever host ran them.

    Another host may write at the same time from fewer cells; so it is written until nothing new came.
    """
    seen: set[str] | None = None
    while seen != (now := {c.name for c in cells(sweep) if result_file(sweep, c.name).is_file()}):
        seen = now
        results = [json.loads(result_file(sweep, name).read_text())["result"] for name in sorted(seen)]
        write_json(Path(sweep.out, "scores.json"), score_record(sweep, results))


def score_record(sweep: Sweep, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The scores file of `scaling fit`: means over seeds, and over tests for `score`; null where no cell
    is finished."""
    sizes, counts = sorted(size_b(model) for model in sweep.llms), sorted(sweep.visual_tokens)
    names = score_names(sweep)

    def cell(n: float, v: int, tests: list[str]) -> tuple[float, float] | None:
        mine = [r["scores"] for r in results if (r["params_b"], r["visual_tokens"]) == (n, v)]
        parts = [scores[name] for scores in mine for name in tests]
        if not parts:
            return None
        score = math.fsum(part["score"] for part in parts) / len(parts)
        return score, math.sqrt(math.fsum(part["stderr"] ** 2 for part in parts)) / len(parts)

    def grid(tests: list[str], field: int) -> list[list[float | None]]:
        found = [[cell(n, v, tests) for v in counts] for n in sizes]
        return [[None if one is None else one[field] for one in row] for row in found]

    return {
        "name": Path(sweep.out).name,
        "params_b": sizes,
        "visual_tokens": counts,
        "query_tokens": sweep.query_tokens,
        "score": grid(names, 0),
        "stderr": grid(names, 1),
        "tasks": {name: grid([name], 0) for name in names},
        "source": f"launch.sweep, {len(results)} of {len(cells(sweep))} cells, {len(sweep.seeds)} seeds",
    }


def dry_run(sweep: Sweep, chosen: list[Cell], topology: str, mfu: float) -> str:
    """A table of cells with their FLOPs, and hours on a topology at a share `mfu` of its peak.

    Raises:
      UserError: the topology is not CHIP-COUNT of a known chip, or mfu is outside 0..1.
    """
    from quecc_jax.aot.chips import find_chip

    match = re.fullmatch(r"(.+)-(\d+)", topology)
    if not match or int(match[2]) < 1:
        raise UserError(f"--topology {topology} is not a chip and a count, such as v5e-64 or h100-8")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu {mfu:g} is outside 0..1")
    chip, count = find_chip(match[1]), int(match[2])
    rate = chip.flops * count * mfu
    width = max(len(cell.name) for cell in chosen)
    lines = [f"{'cell':{width}}   steps 1 + 2   row tokens      FLOPs     hours"]
    total = 0.0
    for cell in chosen:
        one, two = stage_configs(sweep, cell)
        flops = cell_flops(sweep, cell)
        total += flops
        state = "  done" if result_file(sweep, cell.name).is_file() else ""
        lines.append(
            f"{cell.name:{width}} {one.train.steps:>7,} + {two.train.steps:<7,}{two.data.max_length:>7,}   "
            f"{flops:.3e} {flops / rate / 3600:9.2f}{state}"
        )
    lines.append(
        f"{len(chosen)} cells, {total:.3e} FLOPs, {total / rate / 3600:,.1f} hours on {count} x {chip.kind} "
        f"at {100 * mfu:g} % of {chip.flops / 1e12:g} TFLOP/s each; tests, compilation, saving come on top"
    )
    return "\n".join(lines)
