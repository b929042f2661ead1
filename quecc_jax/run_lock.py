"""One run directory, one run."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import jax
from jax.experimental import multihost_utils

from quecc_jax.errors import UserError
from quecc_jax.paths import as_path, is_remote
from quecc_jax.records import Damaged, read_record

LEASE_S = 120.0
"""Seconds after which a lock in a bucket that nobody renewed means nothing any more."""


class InUse(UserError):
    """Another run holds the lock."""


@contextlib.contextmanager
def run_lock(run: str) -> Iterator[str]:
    """Holds the file `lock` in a run's directory; one process does so for all that work together.

    The system drops the lock with the process that holds it, however that ends, so the file that a
    killed process leaves behind means nothing. In a bucket the lock has to be renewed instead: a new
    run waits until it is sure that the last one is gone. File systems without locks are not guarded.

    Yields:
      The file's path; empty in a bucket.

    Raises:
      InUse: another run holds it, named by its process and host.
      UserError: not all processes see the
        same directory.
    """
    path = as_path(run) / "lock"
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(_leased(path, run) if is_remote(run) else _held(path, run))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("run lock")
            if not path.exists():
                raise UserError(
                    f"out directory {run} is another one on process 0; give one that all hosts "
                    "see, as gs://BUCKET/RUN"
                )
        yield "" if is_remote(run) else str(path)


@contextlib.contextmanager
def _held(path: Path, run: str) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"out directory {run} cannot be written ({error}); choose another") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(run, _seen(path)) from None
        except OSError:
            pass
        # A full disk keeps the name from being written, not the lock from being held.
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), json.dumps(_claim()).encode())
        yield


@contextlib.contextmanager
def _leased(path: Path, run: str) -> Iterator[None]:
    claim, there = _claim(), _seen(path)
    if there is not None:
        wait = f"waiting {LEASE_S:.0f} s to be sure that this has ended"
        print(f"{run} was last used by {_name(there)}: {wait}", file=sys.stderr, flush=True)
        time.sleep(LEASE_S)
        if (now := _seen(path)) not in (None, there):
            raise _in_use(run, now)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(LEASE_S / 4):
            # A bucket that fails for a moment fails the checkpoints, not the lock.
            with contextlib.suppress(Exception):
                path.write_text(json.dumps({**claim, "renewed": time.time()}))

    path.write_text(json.dumps(claim))
    thread = threading.Thread(target=renew, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        path.unlink(missing_ok=True)


class _Claim(TypedDict, total=False):
    """What the file says of who holds it; empty where that cannot be read."""

    pid: int
    host: str
    id: str
    renewed: float


def _claim() -> _Claim:
    return {"pid": os.getpid(), "host": socket.gethostname(), "id": uuid.uuid4().hex}


def _seen(path: Path) -> _Claim | None:
    try:
        return read_record(path, _Claim, "")
    except FileNotFoundError:
        return None
    except Damaged:
        return {}


def _name(seen: _Claim | None) -> str:
    if not seen or "pid" not in seen or "host" not in seen:
        return "another run"
    return f"process {seen['pid']} on {seen['host'][:100]}"


def _in_use(run: str, seen: _Claim | None) -> InUse:
    return InUse(f"{run} is in use by {_name(seen)}; wait for it, stop it, or give another out directory")
