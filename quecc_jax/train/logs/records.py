"""The log of a run: a line of metrics.jsonl for each record, and its scalars for those that plot them."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.paths import Lines, as_path
from quecc_jax.records import Count, Damaged, Finite, json_value, of_form, sealed

Record = dict[str, float]
"""One log line: step, loss, and the other scalars, by name."""
Display = Callable[[Record], None]

LEFT_OUT = "left out: "
"""Begins the names of a record's counts of rows left out, by reason."""

PREVIOUS = "previous"
"""Names, in a line of the log, the step of the line before it, so that lines that are lost are seen. Version 0.1 did
not say."""

HELD_OUT_LOSS = "held_out_loss"
"""In a record: the mean cross-entropy over the labelled tokens of held-out rows, in nats."""

SCALARS = ("loss", "grad_norm", "learning_rate", "skipped", "steps_per_s", "tokens_per_s", "flops_per_s")
"""Parts of a record that are plotted."""


class Scalars(Protocol):
    """Takes a run's scalars, to plot them. Nothing that fails in it ends the run."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the scalars of one step, by name."""

    def close(self) -> None:
        """Writes what is left."""


class Records:
    """metrics.jsonl of one run, and those that plot its scalars; a context that closes them.

    On resume, what an earlier process logged beyond the restored step is dropped from both. Lines that are lost
    or cannot be read are said on stderr; training goes on without them.

    Args:
      run: the run's directory.
      step: that it goes on behind; 0 begins anew.
      log_every: steps between two records.
      plots: they get the scalars of every record.
    """

    def __init__(self, run: Path, step: int, log_every: int, plots: Sequence[Scalars] = ()):
        path = run / "metrics.jsonl"
        if step and not path.exists():
            notice(f"WARNING: {path} is lost: the log begins behind step {step}")
        kept, damaged, misplaced, last = list[str](), list[str](), list[str](), 0
        for number, line in enumerate(_complete_lines(path), start=1):
            record = _record(line)
            if record is None:
                damaged.append(str(number))
            elif record["step"] > step:
                continue
            elif record["step"] <= last:
                misplaced.append(str(number))
            else:
                if (before := _previous(record, last)) > last:
                    notice(f"WARNING: {path} says nothing of steps {last + 1} to {before}")
                kept.append(line.decode())
                last = record["step"]
        if damaged:
            notice(f"WARNING: {path}: lines {', '.join(damaged[:10])} are damaged and left out")
        if misplaced:
            notice(
                f"WARNING: {path}: lines {', '.join(misplaced[:10])} stand twice or too late and are left out"
            )
        if path.exists() and last < step - step % log_every:
            notice(f"WARNING: {path} says nothing of steps {last + 1} to {step}")
        self._lines, self._last, self._plots = Lines(path, kept), last, plots

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for plot in self._plots:
            plot.close()
        # What could not be written before cannot be now, and has been said.
        with contextlib.suppress(*[OSError] if kind else []):
            self._lines.close()

    def write(self, record: Record) -> None:
        """Appends a record.

        Raises:
          OSError: metrics.jsonl cannot be written. Started again, the run drops a half line; lines that were lost
            come anew, for no checkpoint is newer.
        """
        plain = {k: v if math.isfinite(v) else None for k, v in record.items()}
        self._lines.add(json.dumps(sealed({**plain, PREVIOUS: self._last}), allow_nan=False))
        self._last = int(record["step"])
        scalars = {f"train/{name}": record[name] for name in SCALARS}
        if HELD_OUT_LOSS in record:
            scalars[f"validation/{HELD_OUT_LOSS}"] = record[HELD_OUT_LOSS]
        for plot in self._plots:
            plot.add(int(record["step"]), scalars)


def read_records(run_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The log lines of a run, oldest first; empty if it has none. Non-finite values are None.

    Lines that are lost are said on stderr.

    Raises:
      UserError: a line is damaged, stands twice, or behind one of a later step.
    """
    path, records, last = as_path(run_dir) / "metrics.jsonl", [], 0
    advice = "delete that line, or train the run again"
    for number, line in enumerate(_complete_lines(path), start=1):
        record = _record(line)
        if record is None:
            raise UserError(f"{path}, line {number} is damaged; {advice}")
        if record["step"] <= last:
            raise UserError(
                f"{path}, line {number} is of step {record['step']}, behind step {last}; {advice}"
            )
        if (before := _previous(record, last)) > last:
            notice(f"WARNING: {path} says nothing of steps {last + 1} to {before}")
        records.append({name: value for name, value in record.items() if name != PREVIOUS})
        last = record["step"]
    return records


def _complete_lines(path: Path) -> list[bytes]:
    """Lines that end in a newline: a killed process may leave a part of one behind."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _previous(record: Mapping[str, Any], last: int) -> int:
    """The step of the line before a record, which is `last` where it does not say."""
    step = record.get(PREVIOUS)
    return step if isinstance(step, int) else last


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line: a step and named numbers; None if that is not what was written there."""
    try:
        record = of_form(json_value(line, "it", ""), dict[str, Count | Finite | None], "it", "")
    except Damaged:
        return None
    return record if isinstance(record.get("step"), int) else None
