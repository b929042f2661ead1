"""The task "mosaic": an m x m grid of easy-VQA images, asked about one cell or about the whole."""

import numpy as np

from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES, image_paths, questions
from quecc_jax.experiments.testbed.cells import UNKNOWN, Asked, Drawn, draw_grids
from quecc_jax.experiments.testbed.settings import Split
from quecc_jax.experiments.testbed.single import shape_and_color, tiles


def draw(
    split: Split, image_size: int, num_images: int, questions_per_image: int, m: int, rng: np.random.Generator
) -> Drawn:
    """Grids of images from one published split whose shape and colour its questions tell.

    Two thirds of the questions are about a cell ("mosaic/cell": its colour or its shape), the others
    count over the whole ("mosaic/whole": shapes of a colour, or of a form).

    Raises:
      UserError: an image has fewer different questions than are asked for.
    """
    about_cell = -(-2 * questions_per_image // 3)
    known = shape_and_color(questions(split), len(image_paths(split)))
    asked = (
        Asked("mosaic/cell", 2 * m * m, about_cell, _about_cell),
        Asked("mosaic/whole", len(COLORS) + len(SHAPES), questions_per_image - about_cell, _about_whole),
    )
    labels = np.pad(known, ((0, 0), (0, 1)))
    usable = np.flatnonzero((known != UNKNOWN).all(axis=1)).astype(np.int32)
    return draw_grids(tiles(split, image_size // m), labels, usable, num_images, m, asked, rng)


def _about_cell(cells: np.ndarray, way: int) -> tuple[str, str]:
    cell, wants_shape = divmod(way, 2)
    row, column = divmod(cell, len(cells))
    shape, color, _ = cells[row, column]
    where = f"in row {row + 1}, column {column + 1}?"
    if wants_shape:
        return f"what shape is {where}", SHAPES[shape - 1]
    return f"what color is the shape {where}", COLORS[color - 1]


def _about_whole(cells: np.ndarray, way: int) -> tuple[str, str]:
    if way < len(COLORS):
        return f"how many {COLORS[way]} shapes are there?", str(np.count_nonzero(cells[..., 1] == way + 1))
    shape = way - len(COLORS)
    return f"how many {SHAPES[shape]}s are there?", str(np.count_nonzero(cells[..., 0] == shape + 1))
