"""Compiles a program for a topology, and reads what the compiler says of it: the optimized program and its memory."""

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax

from quecc_jax.aot import hlo
from quecc_jax.aot.buffers import Buffer, Memory, parse_assignment
from quecc_jax.aot.chips import GIB
from quecc_jax.aot.topology import Topology
from quecc_jax.errors import UserError
from quecc_jax.worker_process import follow_parent

OPTIMIZED, ASSIGNED = "after_optimizations.txt", "after_optimizations-buffer-assignment.txt"
"""Endings of the compiler's dumps: the program, and where its arrays lie."""
REPORTED = "after_optimizations-memory-usage-report.txt"
"""The dump that is written behind these."""

Lower = Callable[[], jax.stages.Lowered]


class Compiled(NamedTuple):
    """What the compiler says of a program, per chip."""

    program: hlo.Program
    memory: Memory
    buffers: list[Buffer]
    needed: int
    """Bytes of main memory that the compiler counts, padding and fragmentation included."""
    limit: int
    """Bytes of main memory that a program may use."""
    trace_seconds: float
    compile_seconds: float


def compile_program(lower: Lower, topology: Topology) -> Compiled:
    """What the compiler's own dumps say, which it also writes for a program that it refuses for its memory.

    Raises:
      UserError: it refused the program for another reason that it does not name, or wrote no dumps.
    """
    limit, began = _limit(topology), time.perf_counter()
    lowered = lower()
    traced = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        refused, code = "", 0
        try:
            compiled = lowered.compile(_dumping(folder))
            stats: Any = compiled.memory_analysis()
            code = stats.generated_code_size_in_bytes
        except jax.errors.JaxRuntimeError as error:
            refused = str(error)
            if "RESOURCE_EXHAUSTED" not in refused:
                raise
        program, memory, buffers = _read(folder, code)
    needed = memory.total
    if refused:
        sizes = re.search(r"\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)", refused)
        if not sizes:
            reason = refused.splitlines()[0]
            raise UserError(f"the TPU compiler refused the program for {topology.name}: {reason}")
        needed, limit = max(_size(sizes[1]), needed), _size(sizes[2])
    return Compiled(program, memory, buffers, needed, limit, traced - began, time.perf_counter() - traced)


def compile_quickly(lower: Lower, topology: Topology) -> Compiled:
    """The same as soon as the compiler knows the program's memory, which is long before it has its code; the code's
    bytes are left out.

    Args:
      lower: can be pickled, for it runs in a process of its own.

    Raises:
      UserError: as `lower`, or that process has ended.
    """
    began, spawn = time.perf_counter(), multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        child = spawn.Process(target=_compile_into, args=(lower, folder, theirs), daemon=True)
        child.start()
        theirs.close()
        try:
            # Once, when it begins to compile; again, when it is done before its dumps are seen.
            traced = _said(ours)
            while not _dumps(folder, REPORTED) and not ours.poll(1):
                pass
            if ours.poll():
                _said(ours)
        finally:
            child.kill()
            child.join()
        end = time.perf_counter()
        program, memory, buffers = _read(folder, 0)
    return Compiled(program, memory, buffers, memory.total, _limit(topology), traced - began, end - traced)


def _compile_into(lower: Lower, folder: str, told: Connection) -> None:
    """Compiles in a process of its own, and tells when it begins and ends (seconds), or what a UserError says."""
    follow_parent()
    try:
        lowered = lower()
        told.send(time.perf_counter())
        try:
            lowered.compile(_dumping(folder))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
        told.send(time.perf_counter())
    except UserError as error:
        told.send(error)


def _said(told: Connection) -> float:
    """Raises UserError for what `_compile_into` sends as such, or where it ended without a word."""
    try:
        said = told.recv()
    except EOFError:
        raise UserError("the process that compiles has ended; it may have run out of memory") from None
    if isinstance(said, UserError):
        raise said
    return float(said)


def _limit(topology: Topology) -> int:
    return int(topology.chip.usable_gib * GIB)


def _read(folder: str, code: int) -> tuple[hlo.Program, Memory, list[Buffer]]:
    program = hlo.parse(_dump(folder, OPTIMIZED))
    return program, *parse_assignment(_dump(folder, ASSIGNED), program, code)


def _dumping(folder: str) -> dict[str, str | bool]:
    """The compiler's options that make it write its dumps to a folder."""
    return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}


def _dump(folder: str, ending: str) -> str:
    """The text of the compiler's dump of the program; kernels may have dumps of their own, which are small."""
    found = _dumps(folder, ending)
    if not found:
        raise UserError(f"the TPU compiler wrote no {ending}; another version of libtpu may be installed")
    return found[-1].read_text()


def _dumps(folder: str, ending: str) -> list[Path]:
    """The compiler's dumps of one kind, the largest last."""
    return sorted(Path(folder).glob(f"*.{ending}"), key=lambda file: file.stat().st_size)


def _size(text: str) -> int:
    """Bytes of `15.75G`."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    return int(float(text.rstrip("KMGT")) * units.get(text[-1], 1))
