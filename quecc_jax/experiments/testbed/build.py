"""Building a testbed pool: the images and questions of one task as a directory that training reads."""

from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from quecc_jax.data.files import fresh_directory
from quecc_jax.data.sources.pool import Pool, read_pool, write_rows
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed import mosaic, reading, single
from quecc_jax.experiments.testbed.cells import Drawn
from quecc_jax.experiments.testbed.settings import Split, Task


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
      task: `single` (easy-VQA as published; `m` is 1), `mosaic` or `reading`.
      directory: Written whole or not at all; replaced when it exists.
      image_size: Side of the images in pixels, a multiple of m.
      num_images: P; for `single` at most as many as are published.
      questions_per_image: Rows per image; for `single` an upper bound, 0 for all that are published.
      m: Cells along a side of the image.
      negations: For `single`: keep the questions that say no or not.
      seed: The two splits of a task draw from independent streams of it.

    Raises:
      UserError: the sizes do not fit together.
    """
    m = 1 if task == "single" else m
    if image_size % m or num_images < 1 or m < 1:
        raise UserError(
            f"images of {image_size} pixels do not divide into {m} x {m} cells, or {num_images} "
            "is no number of images; choose an image_size that is a multiple of m"
        )
    rng = np.random.default_rng([seed, split == "test"])
    if task == "single":
        drawn = single.draw(split, image_size, num_images, questions_per_image, rng, negations)
    else:
        draw = mosaic.draw if task == "mosaic" else reading.draw
        drawn = draw(split, image_size, num_images, questions_per_image, m, rng)
    rows = [{"id": f"{task}-{split}-{number}", **row} for number, row in enumerate(drawn.rows)]
    meta = {
        "task": task,
        "split": split,
        "seed": seed,
        "m": m,
        "image_size": image_size,
        "pictures": len(drawn.sources),
        "questions_per_picture": questions_per_image,
        "rows": len(rows),
    }
    with fresh_directory(directory) as aside:
        _write_images(drawn, image_size, aside / "images.npy")
        np.save(aside / "cells.npy", drawn.cells)
        np.save(aside / "sources.npy", drawn.sources)
        write_rows(rows, meta, aside)
    return read_pool(directory)


def _write_images(drawn: Drawn, image_size: int, path: Path) -> None:
    num_images = len(drawn.sources)
    images = open_memmap(path, "w+", np.uint8, (num_images, image_size, image_size, 3))
    for start in range(0, num_images, 256):
        grid = drawn.tiles[drawn.sources[start : start + 256]].swapaxes(2, 3)
        images[start : start + 256] = grid.reshape(-1, image_size, image_size, 3)
    images.flush()
