"""Runs a grid: what is missing of it, isolated job by job, and puts the results together."""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, cast

from quecc_jax.config.io import nearest
from quecc_jax.errors import UserError, disk_fault, disk_faults
from quecc_jax.experiments.display import Display
from quecc_jax.experiments.grid import Grid, Job, jobs
from quecc_jax.experiments.results import JobRecord, Results, Row, Steps
from quecc_jax.experiments.stats import scores_record
from quecc_jax.experiments.store import (
    add_seconds,
    claim,
    finished,
    result_file,
    set_damaged_aside,
    started,
    total_seconds,
)
from quecc_jax.experiments.worker import cores, run_job, work, worker_pool
from quecc_jax.paths import as_path
from quecc_jax.records import write_record


class Outcome(NamedTuple):
    """Jobs by what became of them, by name."""

    done: list[str]
    failed: list[str]
    skipped: list[str]
    """Left out, for they need one that failed."""
    elsewhere: list[str]
    """Run by another process, or needing such a one."""


def run_grid(grid: Grid, chosen: Collection[str] | None = None, parallel: bool = False) -> Outcome:
    """Runs the jobs that have no result and that no other process runs; scores.json follows every cell.

    A job that fails leaves its traceback in `out/jobs/NAME.error` and takes those with it that need it;
    the others go on. Started again, it is tried once more. A result that is damaged, or another job's, is said
    and that job run anew.

    Args:
      chosen: names of the cells to run; None runs all. Steps are run in any case.
      parallel: run jobs side by side, each on a core of this machine, instead of one after another in this
        process on the devices that JAX has.

    Raises:
      UserError: `out` holds another grid's results or cannot be written, the disk is full, or a worker process
        was killed.
      Preempted: the machine is about to be taken away; the job in progress is saved.
    """
    folder, began = as_path(grid.out), time.time()
    _begin(grid)
    steps = {step.name for step in grid.steps}
    wanted = [job for job in jobs(grid) if chosen is None or job.name in steps or job.name in chosen]
    write_scores(grid)
    try:
        return _run(grid, wanted, parallel, began)
    except BrokenProcessPool:
        raise UserError(
            f"a worker process was killed, perhaps for lack of memory, while {folder} was running; "
            "start it again to continue with the jobs that are missing"
        ) from None
    finally:
        with disk_faults(grid.out):
            add_seconds(grid, time.time() - began)


def run_one(grid: Grid, name: str) -> None:
    """Runs one job in this process, or in several that have joined, unless it has a result.

    Raises:
      UserError: there is no such job, it needs one that has no result yet, or as `run_grid`.
      InUse: others are running it.
      Preempted: the machine is about to be taken away; the same call continues the job.
    """
    job = next((job for job in jobs(grid) if job.name == name), None)
    if job is None:
        raise UserError(
            f"{name} is no job of the grid {grid.name}; {nearest(name, [j.name for j in jobs(grid)])}"
        )
    if missing := unmet(grid, job):
        raise UserError(f"{name} needs {', '.join(missing)}, which has no result yet; run that first")
    # Imported late: a pool of workers prepares what JAX reads.
    import jax

    began, first = time.time(), jax.process_index() == 0
    if first:
        _begin(grid)
    try:
        run_job(grid, job, began)
    finally:
        if first:
            with disk_faults(grid.out):
                add_seconds(grid, time.time() - began)
    if first:
        write_scores(grid)


def unmet(grid: Grid, job: Job) -> list[str]:
    """What a job needs and has no result."""
    return [name for name in job.needs if not result_file(grid, name).is_file()]


def _begin(grid: Grid) -> None:
    claim(grid)
    (as_path(grid.out) / "jobs").mkdir(exist_ok=True)
    set_damaged_aside(grid)


def _run(grid: Grid, wanted: list[Job], parallel: bool, began: float) -> Outcome:
    from quecc_jax.run_lock import InUse

    outcome = Outcome([], [], [], [])
    done = {job.name for job in jobs(grid) if result_file(grid, job.name).is_file()}
    outcome.done.extend(job.name for job in wanted if job.name in done)
    waiting = [job for job in wanted if job.name not in done]
    if not waiting:
        return outcome
    slots = 1
    if parallel:
        slots = len(cores())
        waiting.sort(key=lambda job: -job.cost)
    running: dict[Future[None], Job] = {}
    costs = {job.name: job.cost for job in wanted}
    with (
        worker_pool() if parallel else contextlib.nullcontext() as pool,
        Display(costs, set(outcome.done), f"{grid.out}/jobs") as display,
    ):
        while waiting or running:
            bad = {*outcome.failed, *outcome.skipped}
            outcome.skipped.extend(job.name for job in waiting if bad & {*job.needs})
            done |= {n for job in waiting for n in job.needs if result_file(grid, n).is_file()}
            waiting = [job for job in waiting if job.name not in outcome.skipped]
            ready = [job for job in waiting if {*job.needs} <= done][: slots - len(running)]
            for job in ready:
                running[_submit(pool, grid, job, began, display.update)] = job
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
                if error is not None and (fault := disk_fault(error, grid.out)):
                    # The other jobs would fare no better.
                    raise fault
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


def _submit(
    pool: ProcessPoolExecutor | None, grid: Grid, job: Job, began: float, show: Callable[[list[str]], None]
) -> Future[None]:
    """Starts a job in the pool, or runs it here before it returns; a preemption is raised here."""
    if pool:
        return pool.submit(work, grid, job, began)
    future: Future[None] = Future()
    try:
        run_job(grid, job, began, lambda: show([job.name]))
        future.set_result(None)
    except Exception as problem:
        future.set_exception(problem)
    return future


def check(outcome: Outcome, grid: Grid) -> None:
    """Raises UserError if a job failed or is being run elsewhere."""
    if outcome.failed:
        files = ", ".join(f"{grid.out}/jobs/{name}.error" for name in outcome.failed)
        left = f", and {', '.join(outcome.skipped)} could not run without" if outcome.skipped else ""
        raise UserError(
            f"failed: {', '.join(outcome.failed)}{left}; see {files}, then start it again to retry"
        )
    if outcome.elsewhere:
        names = ", ".join(outcome.elsewhere)
        raise UserError(f"another process is at work on {names}; start it again when that has ended")


def rows_of(grid: Grid, found: dict[str, JobRecord]) -> list[Row]:
    """Rows of the cells among these jobs."""
    return [row for cell in grid.cells if cell.name in found for row in found[cell.name]["result"]["rows"]]


def write_scores(grid: Grid) -> None:
    """Writes scores.json, if a law can be fitted to the grid: one compressor, several models.

    Another host may write at the same time from fewer cells; so it is written until nothing new came.
    """
    tested = [cell for cell in grid.cells if cell.sees_images]
    if len({cell.compressor for cell in tested}) != 1:
        return
    known: set[str] | None = None
    while known != (found := finished(grid)).keys():
        known = {*found}
        note = f"{grid.name}, {sum(cell.name in found for cell in tested)} of {len(tested)} cells"
        sizes = {cell.params_b for cell in tested if cell.params_b}
        tokens = grid.query_tokens or (found["data"]["result"]["prompt_tokens"] if "data" in found else 0.0)
        rows, name = rows_of(grid, found), Path(grid.out).name
        record = scores_record(rows, sizes, grid.visual_tokens, tokens, name, note)
        if record["params_b"]:
            write_record(f"{grid.out}/scores.json", record)


def collect(grid: Grid, command: str) -> Results:
    """The results of a finished grid, as results.json holds them."""
    found, tested = finished(grid), [cell for cell in grid.cells if cell.sees_images]
    seconds = {"total": total_seconds(grid)}
    for job in jobs(grid):
        seconds[job.part] = seconds.get(job.part, 0.0) + found[job.name]["seconds"]
    results, rows = {name: one["result"] for name, one in found.items()}, rows_of(grid, found)
    decoders = {cell.llm: cell.runs[-1].model.decoder for cell in tested}
    params = {row["llm"]: round(row["params_b"] * 1e9) for row in rows}
    return Results(
        grid=grid.name,
        command=command,
        machine=machine(),
        started=started(grid),
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
        rows=rows,
        losses={cell.name: results[cell.name]["losses"] for cell in tested},
        samples=[sample for cell in tested for sample in results[cell.name]["samples"]],
        steps=cast(Steps, {step.name: results[step.name] for step in grid.steps}),
        fits={},
    )


def machine() -> str:
    """Processor and core count."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{model}, {os.cpu_count()} cores"
