"""What a grid keeps in its directory beside its runs.

    grid.json            which grid it is, and when it was started
    seconds.json         how long all starts of it took
    jobs/NAME.json       the result of a finished job
    jobs/NAME.damaged    such a file that did not hold what was written
    jobs/NAME.error      the traceback of a failed job
    jobs/NAME.progress   where a running one is
    attempts/NAME.json   when and where it was tried (`attempts`)

Several processes, and several hosts that see the directory, here or in a bucket, may read and write it at once.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from quecc_jax.errors import UserError
from quecc_jax.experiments.grid import Cell, Grid, Job, digests, jobs
from quecc_jax.experiments.results import CellResult, JobRecord
from quecc_jax.paths import AnyPath, as_path
from quecc_jax.records import Damaged, NonNegative, of_form, read_record, write_record


class _Claim(TypedDict):
    grid: str
    started: str
    jobs: dict[str, str]
    """Checksums of their settings."""


class _Seconds(TypedDict):
    settings: str
    """A checksum of what the grid's jobs share."""
    seconds: NonNegative


class _JobFile(TypedDict):
    job: NotRequired[str]
    settings: NotRequired[str]
    """A checksum of all that the result depends on."""
    seconds: NonNegative
    result: Any


class _Progress(TypedDict):
    job: str
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    note: str


def result_file(grid: Grid, name: str) -> Path:
    """Where a finished job's result lies."""
    return as_path(grid.out) / "jobs" / f"{name}.json"


def claim(grid: Grid) -> None:
    """Marks the directory as this grid's.

    Raises:
      UserError: it is another grid's or an earlier version's, cannot be made, or its mark is damaged. A mark that
        is lost is made anew, which is said.
    """
    folder, wanted = as_path(grid.out), digests(grid)
    file = folder / "grid.json"
    if (folder / "plan.json").is_file():
        raise UserError(f"{folder} was made by an earlier version; delete it or give another --out")
    if file.exists():
        if _claimed(grid)["jobs"] != wanted:
            raise UserError(f"{folder} holds results of another grid; delete it or give another --out")
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        if (folder / "seconds.json").exists():
            warn(f"{file} is lost: the grid counts as started now")
        else:
            _write_seconds(grid, 0.0)
        write_record(file, {"grid": grid.name, "started": now, "jobs": wanted})
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written ({error.strerror}); choose another") from None


def started(grid: Grid) -> str:
    """When the grid was first started, as 2026-01-31T23:59:59."""
    return _claimed(grid)["started"]


def _claimed(grid: Grid) -> _Claim:
    advice = "delete it if the results beside it are this grid's, or give another --out"
    return read_record(f"{grid.out}/grid.json", _Claim, advice)


def add_seconds(grid: Grid, seconds: float) -> None:
    """Counts time that the grid took, from 0 where the count so far is damaged or lost, which is said."""
    try:
        before = total_seconds(grid)
    except Damaged as error:
        warn(str(error))
        before = 0.0
    _write_seconds(grid, before + seconds)


def _write_seconds(grid: Grid, seconds: float) -> None:
    write_record(f"{grid.out}/seconds.json", {"settings": digests(grid)[""], "seconds": seconds}, indent=None)


def total_seconds(grid: Grid) -> float:
    """Time that all starts of the grid took.

    Raises:
      Damaged: the count is damaged, lost or another grid's.
    """
    file, advice = f"{grid.out}/seconds.json", "it is counted from 0"
    try:
        # Once it was a bare number.
        found = read_record(file, _Seconds | float, advice)  # type: ignore[arg-type]
    except FileNotFoundError:
        raise Damaged(f"{file} is lost; {advice}") from None
    if isinstance(found, float):
        return found
    if found["settings"] != digests(grid)[""]:
        raise Damaged(f"{file} is another grid's; {advice}")
    return found["seconds"]


def write_result(grid: Grid, name: str, seconds: float, result: object) -> None:
    """Writes what a job returned, and how long it took."""
    settings = settings_of(digests(grid), name)
    record = {"job": name, "settings": settings, "seconds": seconds, "result": result}
    write_record(result_file(grid, name), record, indent=None)


def finished(grid: Grid) -> dict[str, JobRecord]:
    """Seconds and result of every finished job, whatever host ran it.

    Raises:
      Damaged: a result is damaged, or another job's.
    """
    found, known = {}, digests(grid)
    for job in jobs(grid):
        with contextlib.suppress(FileNotFoundError):
            found[job.name] = read_result(grid, job, known)
    return found


def set_damaged_aside(grid: Grid) -> None:
    """Gives results that are damaged, or another job's, a name that does not count, which is said."""
    known = digests(grid)
    for job in jobs(grid):
        try:
            read_result(grid, job, known)
        except FileNotFoundError:
            continue
        except Damaged:
            # Imported here: where all is well it needs no jax.
            from quecc_jax.run_lock import InUse, run_lock

            with contextlib.suppress(InUse, FileNotFoundError), run_lock(f"{grid.out}/locks/{job.name}"):
                try:
                    read_result(grid, job, known)
                except Damaged as error:
                    file = result_file(grid, job.name)
                    file.replace(file.with_suffix(".damaged"))
                    warn(str(error))


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"WARNING: {message}", file=sys.stderr, flush=True)


def read_result(grid: Grid, job: Job, known: dict[str, str]) -> JobRecord:
    """The result of a job; `known` as `grid.digests` gives it.

    Raises:
      FileNotFoundError: it has none.
      Damaged: the file is damaged or of another job.
    """
    name = job.name
    file = result_file(grid, name)
    advice = f"{name} is run anew"
    found = read_record(file, _JobFile, advice)
    named, settings = found.get("job", name), settings_of(known, name)
    if named != name:
        raise Damaged(f"{file} is the result of {named}; {advice}")
    if found.get("settings", settings) != settings:
        raise Damaged(f"{file} is the result of {named} under other settings; {advice}")
    result = found["result"]
    if isinstance(job, Cell):
        result = of_form(result, CellResult, str(file), advice)
    return {"seconds": found["seconds"], "result": result}


def settings_of(known: dict[str, str], name: str) -> str:
    """What tells a job's settings, and those that its grid shares, from others; `known` as `grid.digests` gives it."""
    return f"{known[''][:16]}-{known[name][:16]}"


def write_progress(grid: Grid, name: str, share: float, note: str) -> None:
    """Says how far a job is, 0..1, and what it is doing."""
    record = {"job": name, "share": min(max(share, 0.0), 1.0), "note": note}
    write_record(f"{grid.out}/jobs/{name}.progress", record, indent=None, durable=False)


def read_progress(folder: AnyPath, name: str) -> tuple[float, str]:
    """How far a job is, 0..1, and what it is doing; the beginning where that cannot be read.

    Args:
      folder: where the jobs' files lie.
    """
    try:
        found = read_record(f"{os.fspath(folder)}/{name}.progress", _Progress, "")
    except (FileNotFoundError, Damaged):
        return 0.0, "starting"
    return (found["share"], found["note"]) if found["job"] == name else (0.0, "starting")
