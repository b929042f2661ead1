"""Maps of the tokens of an any-resolution image's tiles, shrunk bilinearly as torch does it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from quecc_jax.models.arrays import Array


def shrink_maps(tokens: Float[Array, "L I V M"], maps: Int[Array, "L I MAP"]) -> Float[Array, "L I V M"]:
    """Tokens [L, I, V, M] of crops with those of each shrunk map, row by row, where its tiles' tokens stood.

    A new token y, x of a map that goes from h x w to H x W is what stands at (y + 1/2) h / H - 1/2 and
    (x + 1/2) w / W - 1/2 between four of the old ones. Other tokens stay.

    Args:
      tokens: V = side^2 of each crop, row by row.
      maps: see `Batch.maps`.
    """
    pools, crops, v, width = tokens.shape
    side = math.isqrt(v)
    number, columns, top, left, height, across, new_height, new_across = jnp.moveaxis(
        maps[..., None, :], -1, 0
    )
    place = (number - 1) * v + jnp.arange(v)
    y, x = place // jnp.maximum(new_across, 1), place % jnp.maximum(new_across, 1)
    taken = (number > 0) & (y < new_height)
    first = jnp.arange(crops)[:, None] - number

    def along(at: jax.Array, old: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The two neighbours of new positions along one side, and the second's weight."""
        exact = (at + 0.5) * (old / jnp.maximum(new, 1)) - 0.5
        low = jnp.floor(exact).astype(jnp.int32)
        return low, jnp.minimum(low + 1, old - 1), exact - low

    rows, row_weight = _pair(*along(y, height, new_height))
    cells, cell_weight = _pair(*along(x, across, new_across))
    flat = tokens.reshape(pools, crops * v, width)
    total = jnp.zeros_like(tokens, jnp.float32)
    for row, by_row in zip(rows, row_weight, strict=True):
        for cell, by_cell in zip(cells, cell_weight, strict=True):
            down, right = top + row, left + cell
            crop = first + 1 + down // side * columns + right // side
            index = jnp.clip(crop * v + down % side * side + right % side, 0, crops * v - 1)
            read = jnp.take_along_axis(flat, index.reshape(pools, -1, 1), axis=1).reshape(tokens.shape)
            total = total + (by_row * by_cell)[..., None] * read
    return jnp.where(taken[..., None], total.astype(tokens.dtype), tokens)


def _pair(
    low: jax.Array, high: jax.Array, weight: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Two neighbours, and the weight of each."""
    return (low, high), (1.0 - weight, weight)
