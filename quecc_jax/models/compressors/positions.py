"""Fixed 2-D positions of patches and of learned queries that stand on a grid."""

import numpy as np


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
    """x [s^2, D] on a side s square, resized to [grid^2, D] as PyTorch's bicubic interpolation does:
    Keys' kernel with a = -3/4, pixel centres aligned, borders repeated, no antialiasing."""
    side = round(len(x) ** 0.5)
    if side == grid:
        return x
    weights = _bicubic_weights(side, grid)
    square = x.reshape(side, side, -1).astype(np.float64)
    return np.einsum("is,jt,std->ijd", weights, weights, square).reshape(grid * grid, -1).astype(x.dtype)


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old]: what each new place takes from the old ones."""
    a, weights = -0.75, np.zeros((new, old))
    for place in range(new):
        source = (place + 0.5) * old / new - 0.5
        for index in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            t = abs(source - index)
            near = ((a + 2) * t - (a + 3)) * t * t + 1
            far = ((t - 5) * t + 8) * t * a - 4 * a
            weights[place, min(max(index, 0), old - 1)] += near if t <= 1 else far
    return weights
