"""The task "reading": m x m blocks of handwritten digits, to be read out by row or looked up.

The digits are the 1,797 images of 8 x 8 pixels that ship with scikit-learn (the test part of the
UCI set "Optical Recognition of Handwritten Digits"). They come without a split, so one is fixed
here: see `digit_split`.
"""

import numpy as np
from PIL import Image

from quecc_jax.experiments.testbed.cells import Asked, Drawn, draw_grids, named
from quecc_jax.experiments.testbed.settings import Split

TEST_SHARE = 0.2
SPLIT_SEED = 0


def digit_split(split: Split, labels: np.ndarray) -> np.ndarray:
    """Indices of a split: of each digit, a fifth of its images by a fixed permutation is test."""
    rng = np.random.default_rng(SPLIT_SEED)
    chosen = []
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit))
        test = round(TEST_SHARE * len(order))
        chosen.append(order[:test] if split == "test" else order[test:])
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def draw(
    split: Split, image_size: int, num_images: int, questions_per_image: int, m: int, rng: np.random.Generator
) -> Drawn:
    """Blocks of digits from one split.

    Half of the questions (rounded down, at most m) ask for the number in a row, answered by its m
    digits with spaces between ("reading/row"); the others for the digit in a cell ("reading/cell").

    Raises:
      UserError: an image has fewer different questions than are asked for.
    """
    from sklearn.datasets import load_digits

    published = load_digits()
    labels = np.zeros((len(published.target), 3), np.int8)
    labels[:, 2] = published.target + 1
    about_row = min(m, questions_per_image // 2)
    asked = (
        Asked("reading/row", m, about_row, _about_row),
        Asked("reading/cell", m * m, questions_per_image - about_row, _about_cell),
    )
    usable, tiles = digit_split(split, published.target), digit_tiles(published.images, image_size // m)
    return draw_grids(tiles, labels, usable, num_images, m, asked, rng)


def _about_row(cells: np.ndarray, row: int) -> tuple[str, str]:
    return f"what number is written in row {row + 1}?", " ".join(map(named, cells[row]))


def _about_cell(cells: np.ndarray, way: int) -> tuple[str, str]:
    row, column = divmod(way, len(cells))
    return f"which digit is in row {row + 1}, column {column + 1}?", named(cells[row, column])


def digit_tiles(images: np.ndarray, size: int) -> np.ndarray:
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
