"""How orbax is used here, and what of it is no public interface: the names of its unfinished directories, how it
stores a chunk of an array, and when a directory takes its name."""

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.path import atomicity
from orbax.checkpoint._src.serialization import tensorstore_utils

from quecc_jax.checksums import list_files
from quecc_jax.errors import UserError, disk_fault
from quecc_jax.paths import is_remote, sync, sync_tree

UNFINISHED = ".orbax-checkpoint-tmp*"
"""How the name of a directory ends that orbax has begun to write. `tests/train/test_orbax_shim.py` fails when
that changes."""
CHUNK = 1 << 20
"""Bytes of an array that are read together, at most: a host of many reads little besides its own part."""
DESCRIPTION = "_CHECKPOINT_METADATA"
"""Orbax's own file in a checkpoint, or in frozen parameters, by which it knows them."""


def remove_unfinished(run: Path) -> None:
    """Deletes what a killed process had begun to save."""
    if jax.process_index() == 0 and not is_remote(run):
        # Orbax would do this in a thread that it does not join, and misses the frozen parameters.
        for pattern in (f"frozen{UNFINISHED}", f"checkpoints/*{UNFINISHED}", ".tokenizer.*"):
            for path in run.glob(pattern):
                _remove_for_good(path)


def _remove_for_good(path: Path) -> None:
    """Deletes a directory that threads of a save that failed in this process may write to for another moment."""
    for waited in range(50):
        try:
            return shutil.rmtree(path)
        except OSError:
            if waited == 49:
                raise
            time.sleep(0.1)


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
    """Settings to save under: every layer of a stacked leaf lies apart, in chunks of CHUNK bytes, every
    chunk has a checksum that is compared whenever it is read, and a directory that is whole lists its files, see
    `checksums`, under its own name."""
    _check_chunks()
    for finished_by in (atomicity.AtomicRenameTemporaryPath, atomicity.CommitFileTemporaryPath):
        _list_at_end(finished_by)
    context = ocp.Context()
    storage = ocp.options.ArrayOptions.Saving.StorageOptions

    def chunks(path: Any, leaf: Any) -> Any:
        stacked = any(getattr(k, "key", k) == "layers" for k in path)
        return storage(shard_axes=(0,) if stacked else None, chunk_byte_size=CHUNK)

    context.array.saving.scoped_storage_options_creator = chunks
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


def _list_at_end(finished_by: Any) -> None:
    """Has orbax list a directory's files, and wait for the disk, before that takes its name, in this process."""
    finalize = finished_by.finalize
    if hasattr(finalize, "__wrapped__"):
        return

    @functools.wraps(finalize)
    async def with_list(self: Any) -> None:
        aside, final = self.get(), self.get_final()
        # Parts of a checkpoint take their names, too, but have no description of their own.
        if not (aside / DESCRIPTION).exists():
            return await finalize(self)
        if store := self._checkpoint_metadata_store:
            # What the original would do after the list was written.
            self._checkpoint_metadata_store = None
            await asyncio.to_thread(store.wait_until_finished)
            store.update(file_path=aside / DESCRIPTION, commit_timestamp_nsecs=time.time_ns())
            await asyncio.to_thread(store.wait_until_finished)
        list_files(aside, name=final.name)
        if not is_remote(aside):
            sync_tree(Path(aside))
        await finalize(self)
        if not is_remote(final):
            sync(Path(final).parent)

    finished_by.finalize = with_list


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
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
