"""How orbax is used here, and what of it is no public interface: the names of its unfinished directories."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

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


def chunked_by_layer() -> ocp.Context:
    """Settings under which every layer of a stacked leaf lies apart, so that one can be read alone."""
    context = ocp.Context()
    storage = ocp.options.ArrayOptions.Saving.StorageOptions

    def first_axis(path: Any, leaf: Any) -> Any:
        return storage(shard_axes=(0,)) if any(getattr(k, "key", k) == "layers" for k in path) else None

    context.array.saving.scoped_storage_options_creator = first_axis
    return context


def readable(parts: Mapping[str, Any] | None, name: str) -> Any:
    """A part of a checkpoint's metadata; orbax leaves out what it could not read, or says None."""
    if not parts or parts.get(name) is None:
        raise ValueError(f"its part {name!r} is damaged or missing")
    return parts[name]


def first_line(error: BaseException) -> str:
    """Kind and first line of the error at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
