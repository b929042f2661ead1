"""Pools: directories of pictures, questions about them, and later the frozen tower's features.

    rows.jsonl    LLaVA-format rows; "image" counts pictures, "kind" names the question type
    images.npy    uint8 [P, H, W, 3]
    cells.npy     int8 [P, m, m, 3] what the picture's cells contain, see `cells`
    sources.npy   int32 [P, m, m] which published picture each cell is
    meta.json     how the pool was made
    features.npy  float16 [P, n, K, D] tower states, optional; features.json holds their fingerprint

Arrays are opened memory-mapped. A pool of text has the rows and meta.json alone.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.lib.format import open_memmap

from quecc_jax.data import easyvqa, mosaic, reading
from quecc_jax.data.cells import Drawn, caption
from quecc_jax.data.files import fresh_directory, read_json
from quecc_jax.errors import UserError

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


def build_pool(task: Task, split: Literal["train", "test"], directory: str | Path, image_size: int,
               pictures: int, questions_per_picture: int, m: int = 3, seed: int = 0) -> Pool:
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
        raise UserError(f"pictures of {image_size} pixels do not divide into {m} x {m} cells, or {pictures} "
                        "is no number of pictures; choose an image_size that is a multiple of m")
    rng = np.random.default_rng([seed, split == "test"])
    if task == "single":
        drawn = easyvqa.draw(split, image_size, pictures, questions_per_picture, rng)
    else:
        draw = mosaic.draw if task == "mosaic" else reading.draw
        drawn = draw(split, image_size, pictures, questions_per_picture, m, rng)
    rows = [{"id": f"{task}-{split}-{number}", **row} for number, row in enumerate(drawn.rows)]
    meta = {"task": task, "split": split, "seed": seed, "m": m, "image_size": image_size,
            "pictures": len(drawn.picks), "questions_per_picture": questions_per_picture, "rows": len(rows)}
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
    arrays = [np.zeros((0, *shape), dtype) for shape, dtype in
              (((1, 1, 3), np.uint8), ((1, 1, 3), np.int8), ((1, 1), np.int32))]
    if meta["pictures"]:
        arrays = [_open(directory / f"{name}.npy") for name in ("images", "cells", "sources")]
    rows = read_json(directory / "rows.jsonl")
    if len(rows) != meta["rows"] or any(len(array) != meta["pictures"] for array in arrays):
        raise UserError(f"{directory} holds other numbers of rows or pictures than its meta.json says; "
                        "make the pool anew")
    return Pool(directory, meta, rows, *arrays)


def write_features(pool: Pool, fn: Callable[[np.ndarray], Any], batch: int, fingerprint: str,
                   progress: Callable[[int], None] = lambda pictures: None) -> np.ndarray:
    """Stores the frozen tower's states beside the pictures, unless those of `fingerprint` are there.

    Args:
      fn: Maps uint8 [batch, H, W, 3] to features [batch, n, K, D]; it always sees full batches.
      fingerprint: Identifies the tower and its preprocessing, e.g. a hash of its weights.
      progress: Called with the number of pictures done after every batch.

    Returns:
      float16 [P, n, K, D], memory-mapped.

    Raises:
      UserError: a feature is not finite in float16.
    """
    path, note = pool.directory / "features.npy", pool.directory / "features.json"
    if note.is_file() and read_json(note) == {"fingerprint": fingerprint}:
        return read_features(pool, fingerprint)
    aside = path.with_suffix(".aside")
    pictures, array = len(pool.images), None
    for start in range(0, pictures, batch):
        chunk = np.asarray(pool.images[start:start + batch])
        rows = len(chunk)
        if rows < batch:
            chunk = np.concatenate([chunk, np.repeat(chunk[-1:], batch - rows, axis=0)])
        with np.errstate(over="ignore"):
            features = np.asarray(fn(chunk))[:rows].astype(np.float16)
        if not np.isfinite(features).all():
            raise UserError(f"the tower's features of {pool.directory} leave the range of float16; "
                            "train from pixels (data.cached_features = False)")
        if array is None:
            array = open_memmap(aside, "w+", np.float16, (pictures, *features.shape[1:]))
        array[start:start + rows] = features
        progress(start + rows)
    if array is None:
        raise UserError(f"{pool.directory} has no pictures; features need a pool with pictures")
    array.flush()
    note.unlink(missing_ok=True)
    os.replace(aside, path)
    note_aside = note.with_suffix(".aside")
    note_aside.write_text(json.dumps({"fingerprint": fingerprint}))
    os.replace(note_aside, note)
    return read_features(pool, fingerprint)


def read_features(pool: Pool, fingerprint: str | None = None) -> np.ndarray:
    """Stored tower states, float16 [P, n, K, D], memory-mapped.

    Args:
      fingerprint: The tower that they must be of; None takes any.

    Raises:
      UserError: there are none, or they are of another tower.
    """
    note = pool.directory / "features.json"
    if not note.is_file():
        raise UserError(f"{pool.directory} has no features; write them with write_features, or set "
                        "data.cached_features = False")
    found = read_json(note)["fingerprint"]
    if fingerprint is not None and found != fingerprint:
        raise UserError(f"the features of {pool.directory} are of another tower ({found}, not "
                        f"{fingerprint}); write them anew")
    return _open(pool.directory / "features.npy")


def _open(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the pool anew") from None


def _write_images(drawn: Drawn, image_size: int, path: Path) -> None:
    pictures = len(drawn.picks)
    images = open_memmap(path, "w+", np.uint8, (pictures, image_size, image_size, 3))
    for start in range(0, pictures, 256):
        grid = drawn.tiles[drawn.picks[start:start + 256]].swapaxes(2, 3)
        images[start:start + 256] = grid.reshape(-1, image_size, image_size, 3)
    images.flush()


def write_rows(rows: Sequence[dict[str, Any]], meta: dict[str, Any], directory: Path) -> None:
    """Writes rows.jsonl and meta.json into a directory that is being made."""
    with open(directory / "rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (directory / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
