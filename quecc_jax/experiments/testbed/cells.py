"""What the cells of a testbed image contain: its labels, its dense targets.

A testbed image is an m x m grid of images that others drew. `cells` is an integer array
[..., m, m, 3] of shape, colour and digit numbers: 0 means that there is none, UNKNOWN that the
published questions do not tell. Shape k is SHAPES[k - 1], colour k COLORS[k - 1], digit k is k - 1.
Images of emoji have a fourth number, of the picture in their `names`: k is names[k - 1].
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES, question_row
from quecc_jax.errors import UserError

UNKNOWN = -1
CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, 11)
"""Numbers that shape, colour and digit labels take, 0 included."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a task hands to the pool: P grid images and questions about them."""

    tiles: np.ndarray
    """uint8 [N, c, c, 3] source images at the size of one cell."""
    sources: np.ndarray
    """int32 [P, m, m] index into `tiles` of each cell, as the source's publisher counts."""
    cells: np.ndarray
    """int8 [P, m, m, 3] labels, see the module; of emoji int16 [P, m, m, 4]."""
    rows: list[dict[str, Any]]
    """LLaVA-format rows; "image" counts images 0..P-1, "kind" names the question type."""
    names: tuple[str, ...] = ()
    """Of the fourth label."""


class Asked(NamedTuple):
    """One kind of question that an image can be asked in several ways."""

    kind: str
    ways: int
    """How many different questions there are about one image."""
    taken: int
    """How many of them are asked, at random."""
    question: Callable[[np.ndarray, int], tuple[str, str]]
    """Question and answer of one way, from the image's cells [m, m, 3]."""


def draw_grids(
    tiles: np.ndarray,
    labels: np.ndarray,
    usable: np.ndarray,
    num_images: int,
    m: int,
    asked: Sequence[Asked],
    rng: np.random.Generator,
) -> Drawn:
    """Grids of m x m source images, each cell drawn independently; no image is asked the same question twice.

    Args:
      tiles: [N, c, c, 3], and labels [N, 3] of them.
      usable: indices of the source images that may be drawn.

    Raises:
      UserError: an image has fewer different questions than are asked for.
    """
    for one in asked:
        if one.taken > one.ways:
            raise UserError(
                f"an image of {m} x {m} cells has only {one.ways} different questions {one.kind}, not "
                f"{one.taken}; lower questions_per_image"
            )
    sources = usable[rng.integers(len(usable), size=(num_images, m, m))]
    cells = labels[sources]
    chosen = [np.argsort(rng.random((num_images, one.ways)), axis=1)[:, : one.taken] for one in asked]
    rows = [
        question_row(image, *one.question(cells[image], way), one.kind)
        for image in range(num_images)
        for one, ways in zip(asked, chosen, strict=True)
        for way in ways[image].tolist()
    ]
    return Drawn(tiles, sources, cells, rows)


def named(cell: Iterable[int], names: Sequence[str] = ()) -> str:
    """What one cell shows: a digit, a colour and a shape, or one of `names`."""
    shape, color, digit, *picture = map(int, cell)
    if any(picture):
        return names[picture[0] - 1]
    return str(digit - 1) if digit else f"{COLORS[color - 1]} {SHAPES[shape - 1]}"


def label_grid(cells: np.ndarray, grid: int) -> np.ndarray:
    """Labels of the cell under the centre of each patch: [..., m, m, labels] to
    [..., grid, grid, labels]."""
    m = cells.shape[-2]
    cell = ((np.arange(grid) + 0.5) * m / grid).astype(int)
    return cells[..., cell[:, None], cell, :]
