"""Any-resolution images, as LLaVA-NeXT has them: the whole, squeezed into the tower's square, then tiles.

The tiles are those of a larger image of rows x columns squares, into which the image is scaled and
centred on black. Each tile is a crop, one of the I images of a row. This file cuts the tiles, and says at
which positions of the text their tokens stand and which tokens are left out.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from quecc_jax.config import ModelConfig
from quecc_jax.config.shapes import SHRUNK_FROM
from quecc_jax.data.batch import MAP, NEWLINE

Grid = tuple[int, int]
"""Rows and columns of tiles."""


class Arrangement(NamedTuple):
    """How many squares the tower sees of an image, and which of their tokens stand in the text."""

    crops: int
    """Squares that the tower sees, the whole first."""
    slots: np.ndarray
    """int32 [L] index into their crops * V tokens, or NEWLINE."""
    shrunk: tuple[int, ...] = ()
    """Of a map that is shrunk: tiles of a row of it; top, left, height and width of what is kept; the new height and
    width. Its tokens then stand, row by row, where those of the tiles stood."""


def best_grid(width: int, height: int, grids: Sequence[Grid], side: int) -> Grid:
    """The grid on which the image keeps most of its pixels, and of those the one that wastes least."""

    def fit(grid: Grid) -> tuple[int, int]:
        rows, columns = grid[0] * side, grid[1] * side
        scale = min(columns / width, rows / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - rows * columns

    return max(grids, key=fit)


def split(image: Image.Image, grids: Sequence[Grid], side: int, resample: Image.Resampling) -> np.ndarray:
    """uint8 [1 + rows * columns, side, side, 3] of an RGB image: the whole, then its tiles row by row."""
    rows, columns = best_grid(*image.size, grids, side)
    across, down = columns * side, rows * side
    if (by_width := across / image.width) < (by_height := down / image.height):
        width, height = across, min(math.ceil(image.height * by_width), down)
    else:
        width, height = min(math.ceil(image.width * by_height), across), down
    canvas = Image.new("RGB", (across, down))
    scaled = image.resize((width, height), resample)
    canvas.paste(scaled, ((across - width) // 2, (down - height) // 2))
    tiles = np.asarray(canvas).reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
    whole = np.asarray(image.resize((side, side), resample))
    return np.concatenate([whole[None], tiles.reshape(-1, side, side, 3)])


def unpadded(width: int, height: int, rows: int, columns: int) -> tuple[slice, slice]:
    """Rows and columns of a map of tokens that hold some of an image; one at least is left of each.

    The original leaves none where the image is thinner than a token of the map.
    """
    if width / height > columns / rows:
        kept = max(1, int(round(height * (columns / width), 7)))
        margin = (rows - kept) // 2
        return slice(margin, rows - margin), slice(0, columns)
    kept = max(1, int(round(width * (rows / height), 7)))
    margin = (columns - kept) // 2
    return slice(0, rows), slice(margin, columns - margin)


def arrange(width: int, height: int, model: ModelConfig) -> Arrangement:
    """Tokens of the whole, then those of the tiles as one map without its padding, shrunk where it is larger than
    `vision.max_squares` allows, a newline behind each row of it. Tokens that lie on no grid follow each other tile by
    tile, all of them.

    Args:
      width, height: of the image, in pixels, upright.
      model: gives the grids of tiles and the compressor's output.
    """
    vision, v = model.vision, model.visual_tokens
    rows, columns = best_grid(width, height, vision.tiles, vision.image_size)
    crops, whole = 1 + rows * columns, np.arange(v, dtype=np.int32)
    if not model.has_newline:
        return Arrangement(crops, np.arange(crops * v, dtype=np.int32))
    side = math.isqrt(v)
    index = v + np.arange(rows * columns * v, dtype=np.int32).reshape(rows, columns, side, side)
    whole_map = index.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)
    down, across = unpadded(width, height, rows * side, columns * side)
    kept, shrunk = whole_map[down, across], tuple[int, ...]()
    height, width = kept.shape
    if new := shrunk_size(height, width, side, vision.max_squares):
        shrunk = (columns, down.start, across.start, height, width, *new)
        kept = v + np.arange(new[0] * new[1], dtype=np.int32).reshape(new)
    lines = np.pad(kept, ((0, 0), (0, 1)), constant_values=NEWLINE)
    return Arrangement(crops, np.concatenate([whole, lines.reshape(-1)]), shrunk)


def shrunk_size(height: int, width: int, side: int, squares: int) -> tuple[int, int] | None:
    """Height and width that a map of tokens is shrunk to, for squares of side x side tokens; None where it is not."""
    ratio = math.sqrt(height * width / (squares * side**2)) if squares else 0.0
    if ratio <= SHRUNK_FROM:
        return None
    return max(1, int(height // ratio)), max(1, int(width // ratio))


def maps_of(arranged: Sequence[Arrangement]) -> np.ndarray | None:
    """int32 [I, MAP] of the crops of some images: a crop's number within its image, and `shrunk`; zeros where nothing
    is shrunk, and None where nothing is of any."""
    if not any(one.shrunk for one in arranged):
        return None
    none = (0,) * (MAP - 1)
    rows = [(number, *(one.shrunk or none)) for one in arranged for number in range(one.crops)]
    return np.array(rows, np.int32)


def arrangement_settings(model: ModelConfig) -> tuple[object, ...]:
    """What `arrange` depends on beside V, for names of stored lengths; empty without tiles."""
    vision = model.vision
    if not vision.tiles:
        return ()
    limit = (vision.max_squares,) if vision.max_squares else ()
    return (vision.tiles, vision.image_size, model.has_newline, *limit)
