"""Several processes as one run: joining them, sharing out the batch, and ending together.

A pod has one process per host, each started by the same command. On TPU VMs, GKE, Slurm and Open MPI
they find each other; anywhere else three environment variables say where they meet:

    JAX_COORDINATOR_ADDRESS=host0:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 python -m launch.train ...

No process outlives the others for long: one that fails leaves at once, and the others notice by a broken
connection (at once), by missing heartbeats (a dead machine), or by a step that never ends (one that lives
but is stuck), whichever comes first.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from quecc_jax.errors import UserError
from quecc_jax.sharding import batch_parts, batch_sharding

JOIN_S = 300
"""Seconds that a process waits at its start for the others."""
HEARTBEAT_S = 60
"""Seconds of silence after which a process is taken for dead."""
STALL_S = 1800
"""Seconds without a finished step after which a process of several gives up; compiling a large model
for a pod takes minutes."""


@contextlib.contextmanager
def joined(join_s: int = JOIN_S, heartbeat_s: int = HEARTBEAT_S, preemption: bool = True) -> Iterator[None]:
    """A context that makes this process one of a run's, if it was started as one of several.

    Enter it before anything touches a device. In a run of several processes an exception inside ends
    this process with status 1 after one line on stderr, without waiting for the others.

    Args:
      join_s: seconds to wait for the others.
      heartbeat_s: seconds of silence after which a process is taken for dead.
      preemption: whether JAX receives SIGTERM, for those who ask it; else one process of several ends on it.

    Raises:
      UserError: the variables above are incomplete or wrong. If the others do not come in time, this
        process ends with status 1 after one line on stderr.
    """
    join(join_s, heartbeat_s, preemption)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        leave(error)
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def join(join_s: int = JOIN_S, heartbeat_s: int = HEARTBEAT_S, preemption: bool = True) -> None:
    """Joins the other processes of this run; does nothing in one that runs alone.

    Raises:
      UserError: as `joined`.
    """
    several = {name: os.environ.get(name) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")}
    given = explicit()
    # Under Slurm and Open MPI, JAX would leave a lone process one of its GPUs.
    if given is None and any(size == "1" for size in several.values()):
        return
    address, count, index = given or (None, None, None)
    # JAX would abort the process without a word about what to do, so this one comes first.
    alarm = threading.Timer(join_s, give_up_joining, (address, join_s))
    alarm.daemon = True
    alarm.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            jax.config.update("jax_enable_preemption_service", preemption)
            jax.distributed.initialize(
                address,
                count,
                index,
                initialization_timeout=join_s + 60,
                heartbeat_timeout_seconds=heartbeat_s,
                shutdown_timeout_seconds=heartbeat_s,
            )
    except ValueError as error:
        # No cluster that JAX knows: the usual case of a single machine.
        if given is not None or any(several.values()):
            raise UserError(f"this process cannot join its run ({error}); check its JAX_ variables") from None
    except RuntimeError as error:
        # A program that calls a command after its own work with JAX runs alone, unless it was told otherwise.
        if given is None and not any(several.values()) and "before any JAX calls" in str(error):
            return
        raise UserError(
            f"this process cannot join its run ({str(error).strip().partition(chr(10))[0]}); "
            "start the same command on every host"
        ) from None
    finally:
        alarm.cancel()
    # A program from the cache runs its collectives in another order than one just compiled: with XLA's
    # own for CPUs, processes of both kinds wait for each other for ever (jaxlib 0.10.2).
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)


def give_up_joining(address: str | None, join_s: float) -> None:
    """Ends this process because the others did not come."""
    where = f" at {address}" if address else ""
    advice = "start the same command on every host, and let all of them reach the first one"
    message = f"error: the processes of this run did not meet{where} within {join_s:.0f} s; {advice}"
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


def explicit() -> tuple[str, int, int] | None:
    """(coordinator's address, processes, this one's index) from the environment; None if it says nothing.

    Raises:
      UserError: some of the three are missing or not numbers in range.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    if count is None and index is None:
        # The address alone only overrides what the cluster says.
        return None
    try:
        numbers = int(count or ""), int(index or "")
    except ValueError:
        numbers = (0, 0)
    host, _, port = (address or "").rpartition(":")
    if not (host and port.isdigit() and 0 <= numbers[1] < numbers[0]):
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS={address} JAX_NUM_PROCESSES={count} JAX_PROCESS_ID={index} do not name "
            "a place to meet; give HOST:PORT of process 0, the number of processes, and this one's from 0 on"
        )
    return f"{host}:{port}", *numbers


def leave(error: BaseException) -> None:
    """Ends this process of several at once: an orderly end would wait for those that may be gone."""
    place = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UserError):
        line = f"error: {place}: {error}"
    elif isinstance(error, KeyboardInterrupt):
        line = f"interrupted: {place}"
    elif isinstance(error, jax.errors.JaxRuntimeError):
        line = f"error: {place} {lost(error)}"
    else:
        traceback.print_exception(error)
        line = f"error: {place} ended by {type(error).__name__}"
    print(line, file=sys.stderr, flush=True)
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def lost(error: BaseException | str) -> str:
    """What to say when working together has failed."""
    reason = str(error).strip().partition("\n")[0][:200]
    return (
        f"lost the others ({reason}); look at their output for the first error, then start all of them "
        "again: they go on from what was saved"
    )


def notice(message: str) -> None:
    """One line on stderr, from one process."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Which rows of a batch this process's devices hold, and so which it must read.

    Processes that hold the same rows (their devices differ in `tensor` alone) read the same ones.

    Returns:
      int64 [rows of this process], ascending.

    Raises:
      UserError: the rows do not divide over the mesh.
    """
    sharding = batch_sharding(mesh)
    parts = batch_parts(mesh)
    if rows % parts:
        raise UserError(
            f"train.batch_size {rows} does not divide over {parts} devices of mesh axes data and fsdp; "
            "choose a multiple, or a smaller mesh.data or mesh.fsdp"
        )
    slices = {s[0].indices(rows)[:2] for s in sharding.addressable_devices_indices_map((rows,)).values() if s}
    return np.concatenate([np.arange(start, stop) for start, stop in sorted(slices)])


class Watchdog:
    """Ends this process if nothing reports progress for long, where several work together. A context.

    Processes that wait for each other inside a collective cannot be interrupted from Python.
    """

    def __init__(self, limit_s: float = STALL_S, done: str = "step"):
        self.limit_s, self.done = limit_s, done
        self._seen, self._step = time.monotonic(), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def progress(self, step: int) -> None:
        """Says that `step` steps, or whatever is `done` here, are finished."""
        self._seen, self._step = time.monotonic(), step

    def __enter__(self) -> "Watchdog":
        if jax.process_count() > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.limit_s / 4)):
            if time.monotonic() - self._seen > self.limit_s:
                silence = (
                    f"no {self.done} was finished in {self.limit_s:.0f} s after {self.done} {self._step}"
                )
                leave(UserError(lost(silence)))
