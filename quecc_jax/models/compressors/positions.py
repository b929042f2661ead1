"""Fixed 2-D positions of patches and of learned queries that stand on a grid."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.models.bicubic import bicubic_weights, resized_square
from quecc_jax.models.layers import with_axes

Table = jax.Array | np.ndarray

NAME = "positions"
"""Of the parameter that holds them where they are numbers of a checkpoint."""


def positions_of(module: nn.Module, side: int, width: int, stored: bool) -> Table:
    """float32 [side^2, D]: `sine_cosine`, or, stored, the module's parameter that begins as these, without gradient.

    Raises:
      ValueError: D is not a multiple of four.
    """
    computed = sine_cosine(side, width)
    if not stored:
        return computed
    init = with_axes(lambda *_: jnp.asarray(computed), None, "embed")
    held: jax.Array = module.param(NAME, init, computed.shape)
    return jax.lax.stop_gradient(held.astype(jnp.float32))


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


def bicubic(x: Table, grid: int) -> Table:
    """x [s^2, D] on a side s square, resized to [grid^2, D] as PyTorch's bicubic interpolation does."""
    side = round(len(x) ** 0.5)
    if side == grid:
        return x
    if isinstance(x, jax.Array):
        return resized_square(x, grid)
    weights = bicubic_weights(side, grid)
    square = x.reshape(side, side, -1).astype(np.float64)
    return np.einsum("is,jt,std->ijd", weights, weights, square).reshape(grid * grid, -1).astype(x.dtype)
