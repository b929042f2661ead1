"""Progress of a grid on the terminal: all of it and each running job, with the time left."""

import time
from collections.abc import Collection, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from quecc_jax.experiments.store import read_progress
from quecc_jax.paths import AnyPath
from quecc_jax.progress import duration

SAYS_LITTLE = 0.05
"""Share of the work up to which no time left is said."""


class Display:
    """Overall and per-job progress with the time left; a line per finished job in any case."""

    def __init__(self, costs: Mapping[str, float], done: Collection[str], folder: AnyPath):
        self.cost, self.folder = costs, folder
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
        # The first jobs read and make data, and say little about those that train.
        if gained > SAYS_LITTLE * total:
            left = spent * (total - reached) / gained
            self.note = f"{duration(spent)} spent, about {duration(left)} left"
        self.progress.update(self.overall, completed=reached / total, note=self.note)

    def finish(self, name: str, error: BaseException | None) -> None:
        """Marks a job as finished or failed and prints a line."""
        self.ended.add(name)
        if name in self.bars:
            self.progress.remove_task(self.bars.pop(name))
        verdict = f"done {name}" if error is None else f"FAILED {name}: {error}"
        counted = f"({len(self.ended)}/{len(self.cost)}; {self.note})"
        self.progress.console.print(f"{verdict} {counted}", highlight=False, markup=False, soft_wrap=True)
