"""How orbax is used here, and what of it is no public interface: the names of its unfinished directories, and how
it stores a chunk of an array."""

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.serialization import tensorstore_utils

from quecc_jax.errors import disk_fault
from quecc_jax.paths import is_remote

UNFINISHED = ".orbax-checkpoint-tmp*"
"""How the name of a directory ends that orbax has begun to write. `tests/train/test_orbax_shim.py` fails when
that changes."""


def remove_unfinished(run: Path) -> None:
    """Deletes what a killed process had begun to save."""
    if jax.process_index() == 0 and not is_remote(run):
        # Orbax would do this in a thread that it does not join, and misses the frozen parameters.
        for pattern in (f"frozen{UNFINISHED}", f"checkpoints/*{UNFINISHED}", ".tokenizer.*"):
            for path in run.glob(pattern):
                shutil.rmtree(path)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps orbax and asyncio from logging what is about to be reported in one line."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def faults_told_once(witness: str = "") -> Iterator[None]:
    """Keeps orbax and asyncio from logging in every thread what the file system refused: it is raised too.

    Args:
      witness: as of `errors.disk_faults`.
    """

    def is_other(record: logging.LogRecord) -> bool:
        if witness and not os.path.exists(witness):
            return False
        error = record.exc_info[1] if record.exc_info else None
        return disk_fault(error or OSError(record.getMessage())) is None

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other)


def saving() -> ocp.Context:
    """Settings to save under: every layer of a stacked leaf lies apart, so that one can be read alone, and every
    chunk has a checksum that is compared whenever it is read."""
    _check_chunks()
    context = ocp.Context()
    storage = ocp.options.ArrayOptions.Saving.StorageOptions

    def first_axis(path: Any, leaf: Any) -> Any:
        return storage(shard_axes=(0,)) if any(getattr(k, "key", k) == "layers" for k in path) else None

    context.array.saving.scoped_storage_options_creator = first_axis
    # Floats of a trained model hardly compress, and zstd takes longer than the checksum.
    context.array.saving.use_compression = False
    return context


def _check_chunks() -> None:
    """Has orbax put a CRC-32C behind every chunk of an array, from now on in this process.

    Orbax has no option for it, and nothing else would stop one flipped bit in an array.
    """
    build = tensorstore_utils._build_zarr3_metadata
    if hasattr(build, "__wrapped__"):
        return

    @functools.wraps(build)
    def with_checksum(*args: Any, **kwargs: Any) -> dict[str, Any]:
        metadata = build(*args, **kwargs)
        (shards,) = metadata["codecs"]
        shards["configuration"]["codecs"].append({"name": "crc32c"})
        return metadata

    tensorstore_utils._build_zarr3_metadata = with_checksum


def readable(parts: Mapping[str, Any] | None, name: str) -> Any:
    """A part of a checkpoint's metadata; orbax leaves out what it could not read, or says None."""
    if not parts or parts.get(name) is None:
        raise ValueError(f"its part {name!r} is damaged or missing")
    return parts[name]


def frozen_form(path: Path) -> dict[str, Any]:
    """Shapes and types of a directory of frozen parameters, by top-level name.

    Raises:
      ValueError: their description is damaged.
    """
    with quiet_libraries():
        return readable({"state": ocp.metadata(path).metadata}, "state")


def first_line(error: BaseException) -> str:
    """Kind and first line of the error at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
