"""When and where each job of a grid was tried, and how that ended: attempts/NAME.json, oldest first.

The process that holds a job's lock writes the file; of several, the first.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple, TypedDict

from quecc_jax.experiments.grid import Grid, digests
from quecc_jax.experiments.store import settings_of, warn
from quecc_jax.records import Count, Damaged, NonNegative, read_record, write_record

Outcome = Literal["", "done", "failed", "preempted"]
"""How an attempt ended; empty while it runs, and for ever where it was killed."""


class Attempt(TypedDict):
    """One time that a job was tried."""

    host: str
    """Of the first process."""
    place: str
    """What a scheduler calls it, as "slurm 123_4"; empty without one."""
    processes: Count
    began: NonNegative
    """Seconds since the epoch."""
    ended: NonNegative | None
    outcome: Outcome


class _File(TypedDict):
    job: str
    settings: str
    """A checksum of all that the job's result depends on."""
    attempts: list[Attempt]


class Here(NamedTuple):
    """Where this process runs."""

    host: str
    place: str


def here(environment: Mapping[str, str] = os.environ) -> Here:
    """Where this process runs, by what Slurm and JobSets put into its environment."""
    place = ""
    if job := environment.get("SLURM_JOB_ID"):
        array, task = (environment.get(f"SLURM_ARRAY_{part}") for part in ("JOB_ID", "TASK_ID"))
        place = f"slurm {array}_{task}" if array and task else f"slurm {job}"
    elif jobset := environment.get("JOBSET_NAME"):
        place = f"jobset {jobset}"
    return Here(socket.gethostname(), place)


def read_attempts(grid: Grid, name: str) -> list[Attempt]:
    """The attempts of a job, oldest first; none where nothing is kept of any.

    Raises:
      Damaged: the file is damaged, or of another job or grid.
    """
    file, advice = _file(grid, name), "what was kept of attempts is not used"
    try:
        found = read_record(file, _File, advice)
    except FileNotFoundError:
        return []
    if (found["job"], found["settings"]) != (name, settings_of(digests(grid), name)):
        raise Damaged(f"{file} is of {found['job']} or of other settings; {advice}")
    return found["attempts"]


@contextlib.contextmanager
def attempt(
    grid: Grid, name: str, processes: int, ended_as: Callable[[BaseException], Outcome]
) -> Iterator[None]:
    """Notes that a job is tried here, and how that ends.

    Args:
      processes: that try it together.
      ended_as: what an exception that leaves the context means.
    """
    try:
        before = read_attempts(grid, name)
    except Damaged as error:
        warn(str(error))
        before = []
    started, place = time.time(), here()

    def write(ended: float | None, outcome: Outcome) -> None:
        now: Attempt = {
            "host": place.host,
            "place": place.place,
            "processes": processes,
            "began": started,
            "ended": ended,
            "outcome": outcome,
        }
        settings = settings_of(digests(grid), name)
        write_record(_file(grid, name), {"job": name, "settings": settings, "attempts": [*before, now]})

    write(None, "")
    try:
        yield
    except BaseException as error:
        # A full disk takes none.
        with contextlib.suppress(OSError):
            write(time.time(), ended_as(error))
        raise
    write(time.time(), "done")


def _file(grid: Grid, name: str) -> str:
    return f"{grid.out}/attempts/{name}.json"
