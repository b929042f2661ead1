"""What a person sees of a run: a bar, or plain lines."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from quecc_jax.data.bad_rows import describe as describe_reasons
from quecc_jax.progress import duration, human
from quecc_jax.train.logs.records import HELD_OUT_LOSS, LEFT_OUT, Record


def describe(record: Record) -> str:
    """A record as one short line."""
    parts = [
        f"loss {record['loss']:.4f}",
        f"{record['steps_per_s']:.3g} steps/s",
        human(record["tokens_per_s"], "tok/s"),
        human(record["flops_per_s"], "FLOP/s"),
        f"{duration(record['seconds_left'])} left",
    ]
    if HELD_OUT_LOSS in record:
        parts.insert(1, f"held out {record[HELD_OUT_LOSS]:.4f}")
    if record["skipped"]:
        parts.append(f"{record['skipped']:.0f} skipped")
    if questions := record.get("cut_questions"):
        parts.append(f"{questions:.0f} questions cut by data.query_length")
    left_out = {name.removeprefix(LEFT_OUT): n for name, n in record.items() if name.startswith(LEFT_OUT)}
    if left_out:
        parts.append(f"{sum(left_out.values()):.0f} rows left out ({describe_reasons(left_out)})")
    return "  ".join(parts)


def describe_goodput(summary: dict[str, Any]) -> str:
    """How much of a run's time went into steps, and where the rest went, as one line."""
    lost = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary["lost_seconds"].items())
    share, total = summary["goodput"], summary["total_seconds"]
    return f"goodput {share:.1%}: {share * total:.1f} s of {total:.1f} s in steps ({lost})"


class Terminal:
    """The display of one run on stderr: a bar on a terminal, a line per record elsewhere. A context."""

    def __init__(self, title: str, steps: int, start: int = 0):
        self.steps, self.title = steps, title
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            text = "{task.description}", "{task.completed}/{task.total}", "{task.fields[text]}"
            title_, count, rest = map(TextColumn, text)
            self._bar = Progress(title_, BarColumn(24), count, rest, console=Console(stderr=True))
            self._task = self._bar.add_task(title, total=steps, completed=start, text="compiling")
            self._bar.start()

    def __call__(self, record: Record) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=record["step"], text=describe(record))
        else:
            line = f"{self.title} {record['step']}/{self.steps}  {describe(record)}"
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
