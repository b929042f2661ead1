"""Bicubic interpolation, as torch has it."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from quecc_jax.models.arrays import Array


def bicubic_weights(size: int, target: int, antialias: bool = False) -> np.ndarray:
    """float64 [target, size]: what each new position takes of the old ones. Keys' kernel, corners not aligned.

    Without antialiasing a = -0.75 and the edge is repeated. With it a = -0.5, the kernel is as many times wider as
    positions get fewer, and what lies beyond the edge is left out of the mean.
    """
    weights = np.zeros((target, size))
    wider = max(size / target, 1.0) if antialias else 1.0
    a = -0.5 if antialias else -0.75
    for row in range(target):
        at = (row + 0.5) * size / target - 0.5
        for tap in range(math.floor(at - 2 * wider) + 1, math.ceil(at + 2 * wider)):
            if antialias and not 0 <= tap < size:
                continue
            weights[row, min(max(tap, 0), size - 1)] += _keys(abs(at - tap) / wider, a)
    return weights / weights.sum(axis=1, keepdims=True) if antialias else weights


def resized_square(
    table: Float[Array, "N D"], side: int, antialias: bool = False
) -> Float[Array, "side_squared D"]:
    """float32 [side^2, D] of vectors [N, D] that stand on a square, row by row."""
    stored, width = math.isqrt(len(table)), table.shape[1]
    matrix = jnp.asarray(bicubic_weights(stored, side, antialias), jnp.float32)
    squares = table.astype(jnp.float32).reshape(stored, stored, width)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("yh,hwd,xw->yxd", matrix, squares, matrix).reshape(side**2, width)


def _keys(x: float, a: float) -> float:
    """Keys' cubic at a distance of x < 2 positions."""
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((x - 5) * x + 8) * x * a - 4 * a
