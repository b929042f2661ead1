"""Steps that do nothing but note when they ran, for the tests of the executors."""

import json
import os
import time
from pathlib import Path

from quecc_jax.experiments.store import read_progress
from tests.small_disk import fill


def note(grid, step, report):
    """Reports progress, appends to the log, and returns what it was told."""
    out, name = grid.out, step.name
    report(1, 4, "a quarter")
    share, doing = read_progress(Path(out, "jobs"), name)
    began = time.time()
    time.sleep(0.1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    flags = {key: os.environ.get(key) for key in ("XLA_FLAGS", "JAX_PLATFORMS")}
    record = {"name": name, "began": began, "ended": time.time(), "cores": cores, **flags}
    with open(Path(out, "log"), "a") as file:
        file.write(json.dumps(record) + "\n")
    return {"progress": {"share": share, "note": doing}}


def fail(grid, step, report):
    """Fails, unless a file named `repaired` lies in the grid's directory."""
    if not Path(grid.out, "repaired").exists():
        raise ValueError("the disk is made of cheese")
    return note(grid, step, report)


def fill_disk(grid, step, report):
    """Leaves no room for its result, unless a file named `repaired` lies in the grid's directory."""
    if not Path(grid.out, "repaired").exists():
        fill(Path(grid.out))
    return {}


def die(grid, step, report):
    """Ends the process as the system's memory killer would."""
    os._exit(9)


def linger(grid, step, report):
    """Writes the process's number and takes far longer than any test."""
    aside = Path(grid.out, "pid.aside")
    aside.write_text(str(os.getpid()))
    aside.rename(Path(grid.out, "pid"))
    time.sleep(600)


def count(grid, step, report):
    """Returns how many steps of the grid have counted."""
    with open(Path(grid.out, "counted"), "a+") as file:
        file.write(step.name)
        file.seek(0)
        return len(file.read())
