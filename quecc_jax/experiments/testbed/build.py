"""Building a testbed pool: the images and questions of one task as a directory that training reads."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from quecc_jax.data.files import fresh_directory
from quecc_jax.data.sources.pool import Pool, read_pool, write_rows
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed import mosaic, reading, single
from quecc_jax.experiments.testbed.cells import Drawn
from quecc_jax.experiments.testbed.harder import digits, emoji, shapes
from quecc_jax.experiments.testbed.settings import Split, Task, Testbed

DRAW = {
    "mosaic": mosaic.draw,
    "reading": reading.draw,
    "shapes": shapes.draw,
    "digits": digits.draw,
    "emoji": emoji.draw,
}
"""What makes the images and questions of a task, by its name without m; `single` has no grid."""


def build_pool(
    task: Task,
    split: Split,
    directory: str | Path,
    image_size: int,
    num_images: int,
    questions_per_image: int,
    m: int = 3,
    seed: int = 0,
    negations: bool = True,
) -> Pool:
    """Makes the images and questions of one task from one split of its sources.

    Args:
      task: `single` (easy-VQA as published; `m` is 1), `mosaic`, `reading`, or a harder one, which names its own m.
      directory: Written whole or not at all; replaced when it exists.
      image_size: Side of the images in pixels, a multiple of m.
      num_images: P; for `single` at most as many as are published.
      questions_per_image: Rows per image; for `single` an upper bound, 0 for all that are published.
      m: Cells along a side of the image, where the task leaves it open.
      negations: For `single`: keep the questions that say no or not.
      seed: The two splits of a task draw from independent streams of it.

    Raises:
      UserError: the sizes do not fit together.
    """
    m = Testbed(side=m).side_of(task)
    if image_size % m or num_images < 1 or m < 1:
        raise UserError(
            f"images of {image_size} pixels do not divide into {m} x {m} cells, or {num_images} "
            "is no number of images; choose an image_size that is a multiple of m"
        )
    rng = np.random.default_rng([seed, split == "test"])
    if task == "single":
        drawn = single.draw(split, image_size, num_images, questions_per_image, rng, negations)
    else:
        drawn = DRAW[task.rstrip("2345")](split, image_size, num_images, questions_per_image, m, rng)
    rows = [{"id": f"{task}-{split}-{number}", **row} for number, row in enumerate(drawn.rows)]
    meta: dict[str, Any] = {
        "task": task,
        "split": split,
        "seed": seed,
        "m": m,
        "image_size": image_size,
        "pictures": len(drawn.sources),
        "questions_per_picture": questions_per_image,
        "rows": len(rows),
    }
    if drawn.names:
        meta["names"] = drawn.names
    with fresh_directory(directory) as aside:
        _write_images(drawn, image_size, aside / "images.npy")
        np.save(aside / "cells.npy", drawn.cells)
        np.save(aside / "sources.npy", drawn.sources)
        write_rows(rows, meta, aside)
    return read_pool(directory)


def shrink_pool(pool: Pool, directory: str | Path, image_size: int) -> Pool:
    """The same pool with smaller images, each pixel the mean of those that it covers."""
    shape = (len(pool.images), image_size, image_size, 3)
    with fresh_directory(directory) as aside:
        images = open_memmap(aside / "images.npy", "w+", np.uint8, shape)
        for number, image in enumerate(pool.images):
            images[number] = Image.fromarray(image).resize(shape[1:3], Image.Resampling.BOX)
        images.flush()
        np.save(aside / "cells.npy", pool.cells)
        np.save(aside / "sources.npy", pool.sources)
        write_rows(pool.rows, {**pool.meta, "image_size": image_size}, aside)
    return read_pool(directory)


def _write_images(drawn: Drawn, image_size: int, path: Path) -> None:
    num_images = len(drawn.sources)
    images = open_memmap(path, "w+", np.uint8, (num_images, image_size, image_size, 3))
    for start in range(0, num_images, 256):
        grid = drawn.tiles[drawn.sources[start : start + 256]].swapaxes(2, 3)
        images[start : start + 256] = grid.reshape(-1, image_size, image_size, 3)
    images.flush()
