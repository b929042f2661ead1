"""What became of each cell of a grid, by what its directory holds: `launch.sweep CONFIG --status`."""

import contextlib
import time
from collections.abc import Sequence
from typing import NamedTuple

from quecc_jax.data.files import size_and_time
from quecc_jax.experiments.attempts import Attempt, read_attempts
from quecc_jax.experiments.grid import Cell, Grid, digests
from quecc_jax.experiments.store import read_progress, read_result
from quecc_jax.paths import as_path
from quecc_jax.progress import duration
from quecc_jax.records import Damaged

SILENT_S = 900.0
"""Seconds without a word after which a cell that is being tried counts as silent: compiling a large model for a pod
takes minutes, and a process that was killed says nothing more."""


class CellStatus(NamedTuple):
    """What became of a cell."""

    state: str
    """done, running, silent, preempted, failed, damaged or waiting."""
    attempts: list[Attempt]
    seconds: float
    """That its attempts took so far; of a silent one until its last word."""
    note: str


def status_of(grid: Grid, cell: Cell, known: dict[str, str], now: float) -> CellStatus:
    """What became of one cell; `known` as `grid.digests` gives it, `now` in seconds since the epoch."""
    attempts: list[Attempt] = []
    notes: list[str] = []
    try:
        attempts = read_attempts(grid, cell.name)
    except Damaged as error:
        notes.append(str(error))
    last = attempts[-1] if attempts else None
    running = last is not None and last["ended"] is None
    heard = _heard(grid, cell.name, last["began"]) if last and running else now
    seconds = sum((one["ended"] or one["began"]) - one["began"] for one in attempts)
    if last and running:
        seconds += max(0.0, heard - last["began"])
    try:
        result = read_result(grid, cell, known)
        seconds = seconds or result["seconds"]
        return CellStatus("done", attempts, seconds, "; ".join(notes))
    except FileNotFoundError:
        pass
    except Damaged as error:
        return CellStatus("damaged", attempts, seconds, str(error))
    if last is None:
        return CellStatus("waiting", attempts, 0.0, "; ".join(notes))
    if running:
        share, doing = read_progress(f"{grid.out}/jobs", cell.name)
        state = "running" if now - heard <= SILENT_S else "silent"
        notes.insert(0, f"{100 * share:.0f} % {doing}, {duration(max(0.0, now - heard))} ago")
    else:
        state = last["outcome"]
        if state == "failed":
            notes.insert(0, _why(grid, cell.name))
    return CellStatus(state, attempts, seconds, "; ".join(notes))


def status(grid: Grid, cells: Sequence[Cell], now: float | None = None) -> str:
    """A table of cells: state, attempts, hours, where the last attempt ran and began, and what is to be said.

    Args:
      now: seconds since the epoch; None asks the clock.
    """
    known, asked = digests(grid), time.time() if now is None else now
    found = {cell.name: status_of(grid, cell, known, asked) for cell in cells}
    table = [("cell", "state", "attempts", "hours", "where", "began"), *map(_row, found, found.values())]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    notes = ["note", *(one.note for one in found.values())]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=True)), note]).rstrip()
        for row, note in zip(table, notes, strict=True)
    ]
    states = [one.state for one in found.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return "\n".join([*lines, f"{len(cells)} cells: {counts}"])


def _row(name: str, one: CellStatus) -> tuple[str, ...]:
    if not one.attempts:
        return name, one.state, "0", f"{one.seconds / 3600:.2f}" if one.seconds else "", "", ""
    last = one.attempts[-1]
    several = f" x {last['processes']}" if last["processes"] > 1 else ""
    place = f" ({last['place']})" if last["place"] else ""
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(last["began"]))
    hours = f"{one.seconds / 3600:.2f}"
    return name, one.state, str(len(one.attempts)), hours, f"{last['host']}{several}{place}", began


def _heard(grid: Grid, name: str, began: float) -> float:
    """When a running job last said something, in seconds since the epoch."""
    with contextlib.suppress(OSError):
        return max(began, size_and_time(f"{grid.out}/jobs/{name}.progress")[1])
    return began


def _why(grid: Grid, name: str) -> str:
    """The last line of a failed job's traceback."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (as_path(grid.out) / "jobs" / f"{name}.error").read_text().strip().splitlines()
    return lines[-1] if lines else ""
