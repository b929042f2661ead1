"""What a person and a plot see of a run: a bar or plain lines, metrics.jsonl, TensorBoard scalars."""

import contextlib
import json
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from quecc_jax.data.bad_rows import describe as describe_reasons
from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.paths import UPLOAD_S, Lines, as_path, is_remote, remove
from quecc_jax.progress import duration, human
from quecc_jax.records import Count, Damaged, Finite, json_value, of_form, sealed

Record = dict[str, float]
"""One log line: step, loss, and the other scalars, by name."""
Display = Callable[[Record], None]

LEFT_OUT = "left out: "
"""Begins the names of a record's counts of rows left out, by reason."""

PREVIOUS = "previous"
"""Names, in a line of the log, the step of the line before it, so that lines that are lost are seen. Version 0.1 did
not say."""

SCALARS = ("loss", "grad_norm", "learning_rate", "skipped", "steps_per_s", "tokens_per_s", "flops_per_s")
"""Parts of a record that TensorBoard plots."""


def describe(record: Record) -> str:
    """A record as one short line."""
    parts = [
        f"loss {record['loss']:.4f}",
        f"{record['steps_per_s']:.3g} steps/s",
        human(record["tokens_per_s"], "tok/s"),
        human(record["flops_per_s"], "FLOP/s"),
        f"{duration(record['seconds_left'])} left",
    ]
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


class EventFile:
    """The scalars of one process's part of a run, in a file that TensorBoard reads; written by the thread that has
    them, for tensorboardX's own writer hands them to one through a queue, which nobody empties when that has died
    of a full disk.

    Nothing that fails here ends the run: it is said once, what could not be written is left out, and the next
    event is tried again.

    Args:
      folder: made with the first event.
      restored: the step that the run continues from; what other files have behind it TensorBoard hides.
    """

    def __init__(self, folder: Path, restored: int):
        # Imported late, here and below: it takes more than a second, and reading records needs none of it.
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.path = folder / name
        self._head = _framed(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if restored:
            start = SessionLog(status=SessionLog.START)
            self._head += _framed(Event(wall_time=time.time(), step=restored + 1, session_log=start))
        self._file: IO[bytes] | None = None
        self._told, self._uploaded = False, time.monotonic()
        self._content = b""

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of one step."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._write(_framed(Event(wall_time=time.time(), step=step, summary=Summary(value=values))), step)

    def _write(self, event: bytes, step: int) -> None:
        try:
            if is_remote(self.path):
                self._content = (self._content or self._head) + event
                if time.monotonic() - self._uploaded > UPLOAD_S:
                    self._upload()
            else:
                self._append(event)
        except Exception as error:  # those of buckets have nothing in common
            if not self._told:
                reason = getattr(error, "strerror", None) or error
                notice(f"WARNING: {self.path}: {reason}; from step {step} on TensorBoard lacks what fails")
            self._told = True

    def _append(self, event: bytes) -> None:
        """Appends an event, or nothing: readers stop at a half one."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        end = self._file.tell()
        left = event if end else self._head + event
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)
            self._file.seek(end)
            raise

    def _upload(self) -> None:
        self._uploaded = time.monotonic()
        self.path.write_bytes(self._content)

    def close(self) -> None:
        """Writes what is left."""
        with contextlib.suppress(Exception):
            if self._content:
                self._upload()
            if self._file is not None:
                self._file.close()


def _framed(event: Any) -> bytes:
    """An event as a record of TensorFlow's: length, its checksum, content, its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, content)]
    return length + sums[0] + content + sums[1]


class Records:
    """metrics.jsonl and TensorBoard scalars of one run; a context that closes their files.

    On resume, what an earlier process logged beyond the restored step is dropped from both. Lines that are lost
    or cannot be read are said on stderr; training goes on without them.

    Args:
      run: the run's directory.
      step: that it goes on behind; 0 begins anew.
      log_every: steps between two records.
    """

    def __init__(self, run: Path, step: int, log_every: int):
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
        self._lines, self._last = Lines(path, kept), last
        if not step:
            remove(run / "tensorboard")
        self._events = EventFile(run / "tensorboard", step)

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._events.close()
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
        self._events.add(int(record["step"]), {f"train/{name}": record[name] for name in SCALARS})


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
