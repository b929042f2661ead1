"""Where jobs run: in this process one after another, or over the cores of this machine.

Under `out/jobs/`: NAME.json is the result of a finished job, NAME.error the traceback of a failed one,
NAME.progress where a running one is. Under `out/locks/` a running job holds its lock, so that several
processes, and several hosts that see the same directory, share a grid.
"""

import contextlib
import json
import multiprocessing
import os
import pkgutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from quecc_jax.experiments.grid import Grid, Job
from quecc_jax.paths import write_text
from quecc_jax.xla_flags import ONE_THREAD, with_flags

Report = Callable[[float, float, str], None]
"""Called with (units done, units in all, what is going on)."""


class Executor(Protocol):
    """Runs jobs somewhere, `slots` at a time, while it is entered."""

    slots: int

    def __enter__(self) -> "Executor": ...

    def __exit__(self, *error: object) -> None: ...

    def submit(self, grid: Grid, job: Job, began: float, watch: Callable[[], None]) -> "Future[None]":
        """Starts `run_job` and returns its future.

        Args:
          began: seconds since the epoch at which this start of the grid began.
          watch: may be called whenever the job has reported, by executors that run it here.
        """
        ...


class Here:
    """Runs each job in this process when it is submitted, on whatever devices JAX has."""

    slots = 1

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held."""

    def submit(self, grid: Grid, job: Job, began: float, watch: Callable[[], None]) -> "Future[None]":
        """Returns when the job has ended; a preemption is raised here."""
        future: Future[None] = Future()
        try:
            run_job(grid, job, began, watch)
            future.set_result(None)
        except Exception as problem:
            future.set_exception(problem)
        return future


class Processes:
    """Runs jobs in processes of their own on this machine's cores, each on the CPU with one thread."""

    def __init__(self, count: int = 0):
        self.slots = count or len(cores())

    def __enter__(self) -> "Processes":
        context = multiprocessing.get_context("spawn")
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(worker_environment())
        pool = ProcessPoolExecutor(self.slots, context, start_worker, (context.Value("i", 0),))
        self.pool = self.stack.enter_context(pool)
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            for child in multiprocessing.active_children():
                child.terminate()
        self.stack.close()

    def submit(self, grid: Grid, job: Job, began: float, watch: Callable[[], None]) -> "Future[None]":
        """Returns at once."""
        return self.pool.submit(work, grid, job, began)


def work(grid: Grid, job: Job, began: float) -> None:
    """Runs one job in a worker process."""
    from quecc_jax.run_lock import InUse

    try:
        run_job(grid, job, began)
    except InUse:
        raise
    except BaseException as problem:
        # A sentence crosses to the parent safely; not every exception can be pickled.
        raise RuntimeError(f"{type(problem).__name__}: {problem}") from None


def run_job(grid: Grid, job: Job, began: float, watch: Callable[[], None] = lambda: None) -> None:
    """Runs one job here, unless it has a result; that appears whole or not at all, and so does a traceback.

    Args:
      began: a job that has failed in another process since then is not tried again.
      watch: called after every report of the job.

    Raises:
      InUse: another process is running it.
      Preempted: the machine is about to be taken away; what the job has saved continues when it is run again.
    """
    import jax

    from quecc_jax.run_lock import run_lock
    from quecc_jax.train.preemption import Preempted

    files = {end: Path(grid.out, "jobs", f"{job.name}.{end}") for end in ("json", "error", "progress")}

    def report(done: float, total: float, note: str) -> None:
        write_json(files["progress"], {"share": done / total, "note": note})
        watch()

    with run_lock(f"{grid.out}/locks/{job.name}"):
        if files["json"].is_file():
            return
        if told := _failure_since(files["error"], began):
            raise RuntimeError(told)
        try:
            started = time.time()
            files["error"].unlink(missing_ok=True)
            report(0, 1, "starting")
            jax.config.update("jax_compilation_cache_dir", str(Path(grid.out, "compiled").absolute()))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
            result = pkgutil.resolve_name(job.function)(grid, job, report)
            write_json(files["json"], {"seconds": time.time() - started, "result": result})
        except Preempted:
            raise
        except BaseException:
            write_text(files["error"], traceback.format_exc())
            raise
        finally:
            files["progress"].unlink(missing_ok=True)


def _failure_since(error: Path, began: float) -> str:
    """The last line of a traceback that another process has left since then, or nothing."""
    try:
        lines = error.read_text().strip().splitlines() if error.stat().st_mtime > began else []
    except OSError:
        return ""
    return lines[-1] if lines else ""


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value))


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
        "XLA_FLAGS": with_flags(os.environ.get("XLA_FLAGS", ""), ONE_THREAD),
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


def start_worker(started: Any) -> None:
    """Gives a worker process a core of its own, where the system can, and ends it with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    with started.get_lock():
        number = started.value
        started.value += 1
    if hasattr(os, "sched_setaffinity"):
        own = cores()
        os.sched_setaffinity(0, {own[number % len(own)]})


def leave_with_parent() -> None:
    """Ends this process when its parent is gone, so that no orphan writes beside a new run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
