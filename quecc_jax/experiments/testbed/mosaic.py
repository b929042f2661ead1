"""The task "mosaic": an m x m grid of easy-VQA images, asked about one cell or about the whole."""

from typing import Literal

import numpy as np

from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES, image_paths, question_row, questions
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.cells import UNKNOWN, Drawn
from quecc_jax.experiments.testbed.single import shape_and_color, tiles


def draw(
    split: Literal["train", "test"],
    image_size: int,
    num_images: int,
    questions_per_image: int,
    m: int,
    rng: np.random.Generator,
) -> Drawn:
    """Grids of images from one published split whose shape and colour its questions tell.

    Two thirds of the questions are about a cell ("mosaic/cell": its colour or its shape), the others
    count over the whole ("mosaic/whole": shapes of a colour, or of a form). No image is asked the
    same question twice.

    Args:
      image_size: Pixels, a multiple of m.
      m: Cells along a side.

    Raises:
      UserError: the image has fewer different questions than are asked for.
    """
    about_cell = -(-2 * questions_per_image // 3)
    about_whole = questions_per_image - about_cell
    if about_cell > 2 * m * m or about_whole > len(COLORS) + len(SHAPES):
        raise UserError(
            f"a mosaic of {m} x {m} cells has no {questions_per_image} different questions; "
            "lower questions_per_image"
        )
    known = shape_and_color(questions(split), len(image_paths(split)))
    usable = np.flatnonzero((known != UNKNOWN).all(axis=1)).astype(np.int32)
    sources = usable[rng.integers(len(usable), size=(num_images, m, m))]
    shapes, colors = known[sources][..., 0], known[sources][..., 1]
    cells = np.stack([shapes, colors, np.zeros_like(shapes)], axis=-1)

    cell_questions = np.argsort(rng.random((num_images, 2 * m * m)), axis=1)[:, :about_cell]
    whole_questions = np.argsort(rng.random((num_images, len(COLORS) + len(SHAPES))), axis=1)[:, :about_whole]
    rows = []
    for image in range(num_images):
        for number in cell_questions[image].tolist():
            place, wants_shape = divmod(number, 2)
            row, column = divmod(place, m)
            shape, color, _ = cells[image, row, column]
            where = f"in row {row + 1}, column {column + 1}?"
            if wants_shape:
                question, answer = f"what shape is {where}", SHAPES[shape - 1]
            else:
                question, answer = f"what color is the shape {where}", COLORS[color - 1]
            rows.append(question_row(image, question, answer, "mosaic/cell"))
        for number in whole_questions[image].tolist():
            if number < len(COLORS):
                question = f"how many {COLORS[number]} shapes are there?"
                count = np.count_nonzero(colors[image] == number + 1)
            else:
                question = f"how many {SHAPES[number - len(COLORS)]}s are there?"
                count = np.count_nonzero(shapes[image] == number - len(COLORS) + 1)
            rows.append(question_row(image, question, str(count), "mosaic/whole"))
    return Drawn(tiles=tiles(split, image_size // m), sources=sources, picks=sources, cells=cells, rows=rows)
