"""The task "reading": m x m blocks of handwritten digits, to be read out by row or looked up.

The digits are the 1,797 images of 8 x 8 pixels that ship with scikit-learn (the test part of the
UCI set "Optical Recognition of Handwritten Digits"). They come without a split, so one is fixed
here: see `digit_split`.
"""

from typing import Literal

import numpy as np
from PIL import Image

from quecc_jax.data.sources.easy_vqa import question_row
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.cells import Drawn

TEST_SHARE = 0.2
SPLIT_SEED = 0


def digit_split(split: Literal["train", "test"], labels: np.ndarray) -> np.ndarray:
    """Indices of a split: of each digit, a fifth of its images by a fixed permutation is test."""
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = []
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit))
        test = round(TEST_SHARE * len(order))
        chosen.append(order[:test] if split == "test" else order[test:])
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def draw(
    split: Literal["train", "test"],
    image_size: int,
    num_images: int,
    questions_per_image: int,
    m: int,
    rng: np.random.Generator,
) -> Drawn:
    """Blocks of digits from one split, each cell drawn independently.

    Half of the questions (rounded down, at most m) ask for the number in a row, answered by its m
    digits with spaces between ("reading/row"); the others for the digit in a cell ("reading/cell").
    No image is asked the same question twice.

    Args:
      image_size: Pixels, a multiple of m.
      m: Cells along a side.

    Raises:
      UserError: the image has fewer different questions than are asked for.
    """
    from sklearn.datasets import load_digits

    about_row = min(m, questions_per_image // 2)
    about_cell = questions_per_image - about_row
    if about_cell > m * m:
        raise UserError(
            f"a block of {m} x {m} digits has no {questions_per_image} different questions; "
            "lower questions_per_image"
        )
    published = load_digits()
    usable = digit_split(split, published.target)
    sources = usable[rng.integers(len(usable), size=(num_images, m, m))]
    digits = published.target[sources]
    cells = np.zeros((*sources.shape, 3), np.int8)
    cells[..., 2] = digits + 1

    row_questions = np.argsort(rng.random((num_images, m)), axis=1)[:, :about_row]
    cell_questions = np.argsort(rng.random((num_images, m * m)), axis=1)[:, :about_cell]
    rows = []
    for image in range(num_images):
        for row in row_questions[image].tolist():
            answer = " ".join(map(str, digits[image, row]))
            rows.append(
                question_row(image, f"what number is written in row {row + 1}?", answer, "reading/row")
            )
        for place in cell_questions[image].tolist():
            row, column = divmod(place, m)
            question = f"which digit is in row {row + 1}, column {column + 1}?"
            rows.append(question_row(image, question, str(digits[image, row, column]), "reading/cell"))
    return Drawn(
        tiles=_tiles(published.images, image_size // m),
        sources=sources,
        picks=sources,
        cells=cells,
        rows=rows,
    )


def _tiles(images: np.ndarray, size: int) -> np.ndarray:
    """Grey levels 0..16 [N, 8, 8] to bright ink on black, bicubic, with a margin of an eighth of the
    cell on each side so that neighbours do not touch: uint8 [N, size, size, 3]."""
    levels = np.round(images * (255 / 16)).astype(np.uint8)
    margin = size // 8
    inner = size - 2 * margin
    grey = np.zeros((len(levels), size, size), np.uint8)
    for tile, digit in zip(grey, levels, strict=True):
        ink = Image.fromarray(digit).resize((inner, inner), Image.Resampling.BICUBIC)
        tile[margin : margin + inner, margin : margin + inner] = np.asarray(ink)
    return np.repeat(grey[..., None], 3, axis=-1)
