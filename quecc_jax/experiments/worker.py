"""One job of a grid, in this process or in one of a pool over the cores of this machine.

Under `out/locks/` a running job holds its lock, so that several processes, and several hosts that see the same
directory, share a grid. A job may have several processes that have joined (`quecc_jax.distributed`); then the
first alone writes.
"""

import contextlib
import multiprocessing
import os
import pkgutil
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import cast

from quecc_jax.data.files import size_and_time
from quecc_jax.experiments.attempts import Outcome, attempt
from quecc_jax.experiments.grid import Grid, Job
from quecc_jax.experiments.store import result_file, write_progress, write_result
from quecc_jax.paths import as_path, write_text
from quecc_jax.worker_process import follow_parent
from quecc_jax.xla_flags import LESS_OPTIMIZED, ONE_THREAD, with_flags

Report = Callable[[float, float, str], None]
"""Called with (units done, units in all, what is going on)."""


def run_job(grid: Grid, job: Job, began: float, watch: Callable[[], None] = lambda: None) -> None:
    """Runs one job here, unless it has a result; that appears whole or not at all, and so does a traceback.

    Args:
      began: seconds since the epoch; a job that has failed in another process since then is not tried again.
      watch: called after every report of the job.

    Raises:
      InUse: another process is running it.
      Preempted: the machine is about to be taken away; what the job has saved continues when it is run again.
    """
    import jax

    from quecc_jax.groups import gathered
    from quecc_jax.run_lock import run_lock
    from quecc_jax.train.preemption import Preempted

    error, progress = (as_path(grid.out) / "jobs" / f"{job.name}.{end}" for end in ("error", "progress"))
    first, processes = jax.process_index() == 0, jax.process_count()

    def report(done: float, total: float, note: str) -> None:
        if first:
            write_progress(grid, job.name, done / total, note)
        watch()

    def ended_as(problem: BaseException) -> Outcome:
        return "preempted" if isinstance(problem, Preempted) else "failed"

    with contextlib.ExitStack() as stack:
        stack.enter_context(run_lock(f"{grid.out}/locks/{job.name}"))
        # A host may see a file of another one later than the rest.
        finished, told = gathered((result_file(grid, job.name).is_file(), _failure_since(error, began)))[0]
        if finished:
            return
        if told:
            raise RuntimeError(told)
        started = time.time()
        if first:
            stack.enter_context(attempt(grid, job.name, processes, ended_as))
            error.unlink(missing_ok=True)
        try:
            report(0, 1, "starting")
            jax.config.update("jax_compilation_cache_dir", str(as_path(grid.out) / "compiled"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
            result = pkgutil.resolve_name(job.function)(grid, job, report)
            if first:
                write_result(grid, job.name, time.time() - started, result)
        except Preempted:
            raise
        except BaseException:
            # A full disk takes none. The first process that fails knows why; the others lose it.
            with contextlib.suppress(OSError):
                if not (processes > 1 and _failure_since(error, started)):
                    write_text(error, traceback.format_exc())
            raise
        finally:
            if first:
                progress.unlink(missing_ok=True)


def _failure_since(error: Path, began: float) -> str:
    """The last line of a traceback that another process has left since then, or nothing."""
    try:
        lines = error.read_text().strip().splitlines() if size_and_time(error)[1] > began else []
    except OSError:
        return ""
    return lines[-1] if lines else ""


@contextlib.contextmanager
def worker_pool() -> Iterator[ProcessPoolExecutor]:
    """A process for each of this machine's cores, computing on the CPU with one thread; they end with it."""
    context = multiprocessing.get_context("spawn")
    count = len(cores())
    with (
        worker_environment(),
        ProcessPoolExecutor(count, context, _start_worker, (context.Value("i", 0),)) as pool,
    ):
        try:
            yield pool
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def work(grid: Grid, job: Job, began: float) -> None:
    """`run_job` in a process of the pool. One that is told to end takes the pool with it."""
    from quecc_jax.run_lock import InUse
    from quecc_jax.train.preemption import Preempted

    try:
        run_job(grid, job, began)
    except InUse:
        raise
    except Preempted as preempted:
        os._exit(cast(int, preempted.code))
    except BaseException as problem:
        # A sentence crosses to the parent safely; not every exception can be pickled.
        raise RuntimeError(f"{type(problem).__name__}: {problem}") from None


def cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def worker_environment() -> Iterator[None]:
    """Processes started inside compute on the CPU with one thread each: small models gain nothing
    from more. They keep the memory that a step frees for the next one, since handing it back to the
    system page by page took a quarter of the time at V = 64 (glibc; others ignore the names)."""
    wanted = {
        "XLA_FLAGS": with_flags(os.environ.get("XLA_FLAGS", ""), (*LESS_OPTIMIZED, *ONE_THREAD)),
        "JAX_PLATFORMS": "cpu",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TOP_PAD_": str(64 << 20),
    }
    saved = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in saved.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _start_worker(started: "Synchronized[int]") -> None:
    """Gives a worker process a core of its own, where the system can, and ends it with its parent."""
    follow_parent()
    with started.get_lock():
        number = started.value
        started.value += 1
    if hasattr(os, "sched_setaffinity"):
        own = cores()
        os.sched_setaffinity(0, {own[number % len(own)]})
