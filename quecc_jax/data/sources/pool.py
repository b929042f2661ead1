"""Pools: directories of pictures, questions about them, and later the frozen tower's features.

    rows.jsonl    LLaVA-format rows; "image" counts pictures, "kind" names the question type
    images.npy    uint8 [P, H, W, 3]
    cells.npy     int8 [P, m, m, 3] what the picture's cells contain, see `cells`
    sources.npy   int32 [P, m, m] which published picture each cell is
    meta.json     how the pool was made
    features.*    float16 [n, K, D] tower states of each picture, optional: see `features`

Arrays are opened memory-mapped. A pool of text has the rows and meta.json alone.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.format import open_memmap

from quecc_jax.data.files import fresh_directory, read_json
from quecc_jax.data.sources import easy_vqa, feature_store
from quecc_jax.data.sources.feature_store import Features
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed import mosaic, reading
from quecc_jax.experiments.testbed.cells import Drawn, caption

Task = Literal["single", "mosaic", "reading"]


@dataclasses.dataclass(frozen=True)
class Pool:
    """An opened pool; a pool of text has P = 0 pictures."""

    directory: Path
    meta: dict[str, Any]
    rows: list[dict[str, Any]]
    images: np.ndarray
    cells: np.ndarray
    sources: np.ndarray

    def caption(self, picture: int) -> str:
        """States the picture's content; empty where the published questions do not tell it."""
        return caption(self.cells[picture])


def build_pool(
    task: Task,
    split: Literal["train", "test"],
    directory: str | Path,
    image_size: int,
    pictures: int,
    questions_per_picture: int,
    m: int = 3,
    seed: int = 0,
) -> Pool:
    """Makes the pictures and questions of one task from one split of its sources.

    Args:
      task: `single` (easy-VQA as published; `m` is 1), `mosaic` or `reading`.
      directory: Written whole or not at all; replaced when it exists.
      image_size: Side of the pictures in pixels, a multiple of m.
      pictures: P; for `single` at most as many as are published.
      questions_per_picture: Rows per picture; for `single` an upper bound, 0 for all that are published.
      m: Cells along a side of the picture.
      seed: The two splits of a task draw from independent streams of it.

    Raises:
      UserError: the sizes do not fit together.
    """
    m = 1 if task == "single" else m
    if image_size % m or pictures < 1 or m < 1:
        raise UserError(
            f"pictures of {image_size} pixels do not divide into {m} x {m} cells, or {pictures} "
            "is no number of pictures; choose an image_size that is a multiple of m"
        )
    rng = np.random.default_rng([seed, split == "test"])
    if task == "single":
        drawn = easy_vqa.draw(split, image_size, pictures, questions_per_picture, rng)
    else:
        draw = mosaic.draw if task == "mosaic" else reading.draw
        drawn = draw(split, image_size, pictures, questions_per_picture, m, rng)
    rows = [{"id": f"{task}-{split}-{number}", **row} for number, row in enumerate(drawn.rows)]
    meta = {
        "task": task,
        "split": split,
        "seed": seed,
        "m": m,
        "image_size": image_size,
        "pictures": len(drawn.picks),
        "questions_per_picture": questions_per_picture,
        "rows": len(rows),
    }
    with fresh_directory(directory) as aside:
        _write_images(drawn, image_size, aside / "images.npy")
        np.save(aside / "cells.npy", drawn.cells)
        np.save(aside / "sources.npy", drawn.sources)
        write_rows(rows, meta, aside)
    return read_pool(directory)


def read_pool(directory: str | Path) -> Pool:
    """Opens a pool.

    Raises:
      UserError: the directory is not a whole pool.
    """
    directory = Path(directory)
    if not (directory / "meta.json").is_file():
        raise UserError(f"{directory} is not a pool (it has no meta.json); make one with build_pool")
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
            f"{directory} holds other numbers of rows or pictures than its meta.json says; make the pool anew"
        )
    return Pool(directory, meta, rows, *arrays)


def write_features(
    pool: Pool,
    fn: Callable[[np.ndarray], Any],
    batch: int,
    fingerprint: str,
    progress: Callable[[int], None] = lambda pictures: None,
) -> Features:
    """Stores the frozen tower's states beside the pictures, as `features.write_features`.

    Args:
      fn: Maps uint8 [batch, H, W, 3] to features [batch, n, K, D].

    Returns:
      float16 [n, K, D] of each picture.
    """
    return feature_store.write_features(
        pool.directory, len(pool.images), lambda number: pool.images[number], fn, batch, fingerprint, progress
    )


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the pool anew") from None


def _write_images(drawn: Drawn, image_size: int, path: Path) -> None:
    pictures = len(drawn.picks)
    images = open_memmap(path, "w+", np.uint8, (pictures, image_size, image_size, 3))
    for start in range(0, pictures, 256):
        grid = drawn.tiles[drawn.picks[start : start + 256]].swapaxes(2, 3)
        images[start : start + 256] = grid.reshape(-1, image_size, image_size, 3)
    images.flush()


def write_rows(rows: Sequence[dict[str, Any]], meta: dict[str, Any], directory: Path) -> None:
    """Writes rows.jsonl and meta.json into a directory that is being made."""
    with open(directory / "rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (directory / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
