"""Runs a grid: what is missing of it, isolated job by job, and puts the results together."""

import json
import os
import platform
import time
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from quecc_jax.errors import UserError
from quecc_jax.experiments.display import Display
from quecc_jax.experiments.executors import Executor, write_json
from quecc_jax.experiments.grid import Grid, Job, digests, jobs
from quecc_jax.experiments.stats import Results, Row, scores_record


class Outcome(NamedTuple):
    """Jobs by what became of them, by name."""

    done: list[str]
    failed: list[str]
    skipped: list[str]
    """Left out, for they need one that failed."""
    elsewhere: list[str]
    """Run by another process, or needing such a one."""


def run_grid(grid: Grid, executor: Executor, chosen: Collection[str] | None = None) -> Outcome:
    """Runs the jobs that have no result and that no other process runs; scores.json follows every cell.

    A job that fails leaves its traceback in `out/jobs/NAME.error` and takes those with it that need it;
    the others go on. Started again, it is tried once more.

    Args:
      chosen: names of the cells to run; None runs all. Steps are run in any case.

    Raises:
      UserError: `out` holds another grid's results or cannot be written, or a worker process was killed.
      Preempted: the machine is about to be taken away; the job in progress is saved.
    """
    folder, began = Path(grid.out), time.time()
    claim(grid)
    (folder / "jobs").mkdir(exist_ok=True)
    steps = {step.name for step in grid.steps}
    wanted = [job for job in jobs(grid) if chosen is None or job.name in steps or job.name in chosen]
    write_scores(grid)
    try:
        return _run(grid, wanted, executor, began)
    except BrokenProcessPool:
        raise UserError(
            f"a worker process was killed, perhaps for lack of memory, while {folder} was running; "
            "start it again to continue with the jobs that are missing"
        ) from None
    finally:
        seconds = folder / "seconds.json"
        before = json.loads(seconds.read_text()) if seconds.is_file() else 0.0
        write_json(seconds, before + time.time() - began)


def _run(grid: Grid, wanted: list[Job], executor: Executor, began: float) -> Outcome:
    from quecc_jax.run_lock import InUse

    outcome = Outcome([], [], [], [])
    done = {job.name for job in jobs(grid) if result_file(grid, job.name).is_file()}
    outcome.done.extend(job.name for job in wanted if job.name in done)
    waiting = [job for job in wanted if job.name not in done]
    if not waiting:
        return outcome
    if executor.slots > 1:
        waiting.sort(key=lambda job: -job.cost)
    running: dict[Future[None], Job] = {}
    costs = {job.name: job.cost for job in wanted}
    with executor, Display(costs, set(outcome.done), Path(grid.out, "jobs")) as display:
        while waiting or running:
            bad = {*outcome.failed, *outcome.skipped}
            outcome.skipped.extend(job.name for job in waiting if bad & {*job.needs})
            done |= {n for job in waiting for n in job.needs if result_file(grid, n).is_file()}
            waiting = [job for job in waiting if job.name not in outcome.skipped]
            ready = [job for job in waiting if {*job.needs} <= done][: executor.slots - len(running)]
            for job in ready:
                running[executor.submit(grid, job, began, lambda name=job.name: display.update([name]))] = job  # type: ignore[misc]
            waiting = [job for job in waiting if job not in ready]
            if not running and not bad & {n for job in waiting for n in job.needs}:
                # What is left needs a job that another process is running.
                outcome.elsewhere.extend(job.name for job in waiting)
                break
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                name, error = running.pop(future).name, future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                if isinstance(error, InUse):
                    outcome.elsewhere.append(name)
                    continue
                if error is None:
                    done.add(name)
                    write_scores(grid)
                (outcome.done if error is None else outcome.failed).append(name)
                display.finish(name, error)
            display.update([job.name for job in running.values()])
    return outcome


def result_file(grid: Grid, name: str) -> Path:
    """Where a finished job's result lies."""
    return Path(grid.out, "jobs", f"{name}.json")


def claim(grid: Grid) -> None:
    """Marks the directory as this grid's.

    Raises:
      UserError: it is another grid's or an earlier version's, or cannot be made.
    """
    folder, wanted = Path(grid.out), digests(grid)
    file = folder / "grid.json"
    if (folder / "plan.json").is_file():
        raise UserError(f"{folder} was made by an earlier version; delete it or give another --out")
    if file.is_file():
        if json.loads(file.read_text())["jobs"] != wanted:
            raise UserError(f"{folder} holds results of another grid; delete it or give another --out")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"grid": grid.name, "started": time.strftime("%Y-%m-%dT%H:%M:%S"), "jobs": wanted})
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror}); choose another") from None


def check(outcome: Outcome, grid: Grid) -> None:
    """Raises UserError if a job failed or is being run elsewhere."""
    if outcome.failed:
        files = ", ".join(str(Path(grid.out, "jobs", f"{name}.error")) for name in outcome.failed)
        left = f", and {', '.join(outcome.skipped)} could not run without" if outcome.skipped else ""
        raise UserError(
            f"failed: {', '.join(outcome.failed)}{left}; see {files}, then start it again to retry"
        )
    if outcome.elsewhere:
        names = ", ".join(outcome.elsewhere)
        raise UserError(f"another process is at work on {names}; start it again when that has ended")


def finished_rows(grid: Grid) -> list[Row]:
    """Rows of all finished cells, whatever host ran them."""
    files = [file for cell in grid.cells if (file := result_file(grid, cell.name)).is_file()]
    return [row for file in files for row in json.loads(file.read_text())["result"]["rows"]]


def write_scores(grid: Grid) -> None:
    """Writes scores.json, if a law can be fitted to the grid: one compressor, several models.

    Another host may write at the same time from fewer cells; so it is written until nothing new came.
    """
    if len({cell.compressor for cell in grid.cells if cell.sees_images}) != 1:
        return
    seen: set[str] | None = None
    while seen != (now := {c.name for c in grid.cells if result_file(grid, c.name).is_file()}):
        seen = now
        rows, tested = finished_rows(grid), [cell for cell in grid.cells if cell.sees_images]
        note = f"{grid.name}, {len(seen & {c.name for c in tested})} of {len(tested)} cells"
        sizes = {cell.params_b for cell in tested if cell.params_b}
        tokens = grid.query_tokens or _result(grid, "data").get("prompt_tokens", 0.0)
        record = scores_record(rows, sizes, grid.visual_tokens, tokens, Path(grid.out).name, note)
        if record["params_b"]:
            write_json(Path(grid.out, "scores.json"), record)


def _result(grid: Grid, name: str) -> Any:
    file = result_file(grid, name)
    return json.loads(file.read_text())["result"] if file.is_file() else {}


def collect(grid: Grid, command: str) -> Results:
    """The results of a finished grid, as results.json holds them."""
    every = jobs(grid)
    raw = {job.name: json.loads(result_file(grid, job.name).read_text()) for job in every}
    seconds = {"total": json.loads(Path(grid.out, "seconds.json").read_text())}
    for job in every:
        seconds[job.phase] = seconds.get(job.phase, 0.0) + raw[job.name]["seconds"]
    tested = [cell for cell in grid.cells if cell.sees_images]
    found = {cell.name: raw[cell.name]["result"] for cell in grid.cells}
    decoders = {cell.llm: cell.runs[-1].model.decoder for cell in tested}
    params = {row["llm"]: round(row["params_b"] * 1e9) for row in _rows(found.values())}
    return Results(
        grid=grid.name,
        command=command,
        machine=machine(),
        started=json.loads(Path(grid.out, "grid.json").read_text())["started"],
        seconds=seconds,
        visual_tokens=list(grid.visual_tokens),
        seeds=sorted({cell.seed for cell in tested}),
        llms=[
            {"name": name, "width": d.width, "depth": d.depth, "params": params[name]}
            for name, d in decoders.items()
        ],
        own=grid.own,
        stages=[[run.train.stage, run.train.steps, run.train.batch_size] for run in tested[0].runs],
        models=len(tested),
        rows=_rows(found.values()),
        losses={cell.name: found[cell.name]["losses"] for cell in tested},
        samples=[sample for cell in tested for sample in found[cell.name]["samples"]],
        steps={step.name: raw[step.name]["result"] for step in grid.steps},
        fits={},
    )


def _rows(found: Collection[dict[str, Any]]) -> list[Row]:
    return [row for one in found for row in one["rows"]]


def machine() -> str:
    """Processor and core count."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"
