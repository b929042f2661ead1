"""Progress on stderr, with the time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

LINE_SECONDS = 5.0
"""Seconds between the lines of `byte_bar` where there is no terminal."""


@contextmanager
def bars(*amounts: "ProgressColumn") -> "Iterator[Progress]":
    """Bars of what is done, how many of how many, and the time left; add a task for each.

    Args:
      amounts: columns that take the place of "how many of how many".
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *(amounts or (MofNCompleteColumn(),)),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield progress


@contextmanager
def byte_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """How many of `total` bytes are done: a bar on a terminal, a line now and then elsewhere.

    Yields:
      To be told how many more bytes are done.
    """
    if sys.stderr.isatty():
        from rich.progress import DownloadColumn, TransferSpeedColumn

        with bars(DownloadColumn(), TransferSpeedColumn()) as progress:
            task = progress.add_task(title, total=total)
            yield lambda count: progress.advance(task, count)
        return
    done, began = 0, time.monotonic()
    told = began

    def add(count: int) -> None:
        nonlocal done, told
        done, now = done + count, time.monotonic()
        if now - told >= LINE_SECONDS:
            told, rate = now, done / (now - began)
            # The first bytes say nothing about the others.
            known = done >= total / 100
            speed = f"{human(rate, 'B/s')}  {duration((total - done) / rate)} left" if known else "starting"
            line = f"{title} {human(done, 'B')} of {human(total, 'B')}  {speed}"
            print(line, file=sys.stderr, flush=True)

    yield add


def human(value: float, unit: str) -> str:
    """Three digits and an SI prefix: human(12345.0, "tok/s") is "12.3 ktok/s"."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} E{unit}"


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
