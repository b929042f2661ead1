"""What the cells of a demo image contain: its labels, its caption, its dense targets.

A demo image is an m x m grid of images that others drew. `cells` is an integer array
[..., m, m, 3] of shape, colour and digit numbers: 0 means that there is none, UNKNOWN that the
published questions do not tell. Shape k is SHAPES[k - 1], colour k COLORS[k - 1], digit k is k - 1.
"""

import dataclasses
from typing import Any

import numpy as np

from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES

UNKNOWN = -1
CLASSES = (len(SHAPES) + 1, len(COLORS) + 1, 11)
"""Numbers that shape, colour and digit labels take, 0 included."""


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a task hands to the pool: P grid images and questions about them."""

    tiles: np.ndarray
    """uint8 [N, c, c, 3] source images at the size of one cell."""
    sources: np.ndarray
    """int32 [P, m, m] number of the source image in each cell, as its publisher counts."""
    picks: np.ndarray
    """int32 [P, m, m] index into `tiles` of each cell."""
    cells: np.ndarray
    """int8 [P, m, m, 3] labels, see the module."""
    rows: list[dict[str, Any]]
    """LLaVA-format rows; "image" counts images 0..P-1, "kind" names the question type."""


def caption(cells: np.ndarray) -> str:
    """States the content of one image [m, m, 3]; empty where it is not known.

    "a red circle" for a single shape, otherwise rows of shapes or digits:
    "row 1: red circle, teal triangle. row 2: ..." or "row 1: 3 5. row 2: ...".
    """
    rows = cells.tolist()
    if any(UNKNOWN in cell for row in rows for cell in row):
        return ""
    if len(rows) == 1 and rows[0][0][0]:
        return f"a {_name(*rows[0][0])}"
    between = " " if rows[0][0][2] else ", "
    lines = (between.join(_name(*cell) for cell in row) for row in rows)
    return " ".join(f"row {number}: {line}." for number, line in enumerate(lines, start=1))


def _name(shape: int, color: int, digit: int) -> str:
    return str(digit - 1) if digit else f"{COLORS[color - 1]} {SHAPES[shape - 1]}"


def label_grid(cells: np.ndarray, grid: int) -> np.ndarray:
    """Shape, colour and digit of the cell under the centre of each patch: [..., m, m, 3] to
    [..., grid, grid, 3]."""
    m = cells.shape[-2]
    cell = ((np.arange(grid) + 0.5) * m / grid).astype(int)
    return cells[..., cell[:, None], cell, :]
