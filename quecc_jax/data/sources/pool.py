"""Pools: what the testbed is trained and tested on, a directory of images with questions about them.

    rows.jsonl    LLaVA-format rows; "image" counts images, "kind" names the question type
    images.npy    uint8 [images, height, width, 3]
    cells.npy     int8 [images, m, m, 3] what the cells of an image contain, see `cells`; of emoji int16, with 4
    sources.npy   int32 [images, m, m] which published image each cell is
    meta.json     how the pool was made
    checksums.json  of all of these
    features.*    float16 [N, K, D] tower states of each image, optional: see `feature_store`

Arrays are opened memory-mapped. A pool of text has the rows and meta.json alone.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quecc_jax.checksums import check_files, list_files
from quecc_jax.data.files import read_json
from quecc_jax.data.sources import feature_store
from quecc_jax.data.sources.feature_store import Encoder, Features
from quecc_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pool:
    """An opened pool; a pool of text has no images."""

    directory: Path
    meta: dict[str, Any]
    rows: list[dict[str, Any]]
    images: np.ndarray
    cells: np.ndarray
    sources: np.ndarray


def read_pool(directory: str | Path) -> Pool:
    """Opens a pool.

    Raises:
      UserError: the directory is not a whole pool, or a file of it is damaged.
    """
    directory = Path(directory)
    if not (directory / "meta.json").is_file():
        raise UserError(
            f"{directory} is not a pool (it has no meta.json); build it with quecc_jax.experiments.testbed"
        )
    check_files(directory, "make the pool anew")
    meta = read_json(directory / "meta.json")
    arrays = [
        np.zeros((0, *shape), dtype)
        for shape, dtype in (((1, 1, 3), np.uint8), ((1, 1, 3), np.int8), ((1, 1), np.int32))
    ]
    if meta["pictures"]:
        arrays = [_open(directory / f"{name}.npy") for name in ("images", "cells", "sources")]
    rows = read_json(directory / "rows.jsonl")
    if len(rows) != meta["rows"] or any(len(array) != meta["pictures"] for array in arrays):
        raise UserError(
            f"{directory} holds other numbers of rows or images than its meta.json says; make the pool anew"
        )
    return Pool(directory, meta, rows, *arrays)


def write_features(
    pool: Pool,
    fn: Encoder,
    batch: int,
    fingerprint: str,
    progress: Callable[[int], None] = lambda num_images: None,
) -> Features:
    """Stores the frozen tower's states beside the images, as `feature_store.write_features`.

    Args:
      fn: Maps uint8 [batch, height, width, 3] to states [batch, N, K, D].

    Returns:
      float16 [N, K, D] of each image.
    """
    return feature_store.write_features(
        pool.directory, len(pool.images), lambda number: pool.images[number], fn, batch, fingerprint, progress
    )


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except Exception as error:  # numpy's reader of headers has no kinds of its own
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read ({reason}); make the pool anew") from None


def write_rows(rows: Sequence[dict[str, Any]], meta: dict[str, Any], directory: Path) -> None:
    """Writes rows.jsonl and meta.json into a directory that is being made, and the checksums of all that it holds."""
    with open(directory / "rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (directory / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    list_files(directory, whole=sys.maxsize)
