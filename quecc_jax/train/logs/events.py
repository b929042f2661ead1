"""Scalars of a run for TensorBoard."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from quecc_jax.distributed import notice
from quecc_jax.paths import UPLOAD_S, is_remote

TENSORBOARD = "tensorboard"
"""Folder of a run."""


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
