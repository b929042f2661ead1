"""How far a conversion is: a bar of bytes on a terminal, a line now and then elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from quecc_jax.train.progress import duration, human

EVERY = 5.0
"""Seconds between lines where there is no terminal."""


class ByteBar:
    """The display of one conversion on stderr. A context."""

    def __init__(self, title: str, total: int):
        self.title, self.total, self.done = title, total, 0
        self._started = self._told = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(24),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total)

    def add(self, count: int) -> None:
        """Counts bytes that are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
            return
        now = time.monotonic()
        if now - self._told >= EVERY:
            self._told = now
            rate = self.done / (now - self._started)
            left = duration((self.total - self.done) / rate)
            print(
                f"{self.title} {human(self.done, 'B')} of {human(self.total, 'B')}  {human(rate, 'B/s')}  "
                f"{left} left",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> "ByteBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
