"""Fixed 2-D positions of patches and of learned queries that stand on a grid."""

import numpy as np

from quecc_jax.models.bicubic import bicubic_weights


def sine_cosine(side: int, width: int) -> np.ndarray:
    """float32 [side^2, D] in raster order: sines and cosines of the column, then of the row.

    With frequency i of D / 4 being 10000^(-4 i / D), each half holds the sines of all frequencies, then
    their cosines.

    Raises:
      ValueError: D is not a multiple of four.
    """
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4, which positions on a grid need")
    frequency = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    angle = np.arange(side)[:, None] * frequency
    one = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    row, column = (x.ravel() for x in np.indices((side, side)))
    return np.concatenate([one[column], one[row]], axis=-1).astype(np.float32)


def bicubic(x: np.ndarray, grid: int) -> np.ndarray:
    """x [s^2, D] on a side s square, resized to [grid^2, D] as PyTorch's bicubic interpolation does."""
    side = round(len(x) ** 0.5)
    if side == grid:
        return x
    weights = bicubic_weights(side, grid)
    square = x.reshape(side, side, -1).astype(np.float64)
    return np.einsum("is,jt,std->ijd", weights, weights, square).reshape(grid * grid, -1).astype(x.dtype)
