"""The published method: the error of every point of a grid, and the point where it is least.

The authors' grid has 50 x 100 x 100 x 10 points over A, alpha, beta and D; they shuffled it without a
seed and stopped at 20 %. Here all of it is evaluated, each point on all cells, in one compiled loop.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.law import Params
from scaling.solver import Cells

PUBLISHED_POINTS = Params(50, 100, 100, 10)
"""Points per axis, ends included: 5,000,000 in all."""


class GridOptimum(NamedTuple):
    """The best grid point, its objective as in `solver.Solution`, and how many points were compared."""

    params: Params
    objective: float
    n_points: int


def search_grid(
    cells: Cells,
    lower: Params,
    upper: Params,
    huber_delta: float | None = None,
    points: Params = PUBLISHED_POINTS,
) -> GridOptimum:
    """Evaluates the loss at every point of an even grid over a finite box, in float64.

    An axis whose ends coincide has one point.
    """
    axes = Params(
        *(np.linspace(lo, hi, n if lo < hi else 1) for lo, hi, n in zip(lower, upper, points, strict=True))
    )
    cells = Cells(*(np.asarray(leaf, np.float64) for leaf in cells))
    with jax.enable_x64(True):
        least, at = jax.tree.map(np.asarray, _evaluate(axes, cells, huber_delta))
    first = int(np.argmin(least))
    j, k, m = np.unravel_index(int(at[first]), (len(axes.beta), len(axes.A), len(axes.D)))
    params = Params(*(float(axis[i]) for axis, i in zip(axes, (k, first, j, m), strict=True)))
    return GridOptimum(params, float(least[first]), int(np.prod([len(axis) for axis in axes])))


@functools.partial(jax.jit, static_argnames="huber_delta")
def _evaluate(axes: Params, cells: Cells, huber_delta: float | None) -> tuple[jax.Array, jax.Array]:
    """For each alpha, the least objective over the other axes and its place among (beta, A, D)."""
    tokens = jnp.exp(-axes.beta[:, None] * jnp.log(cells.t))

    def plane(alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
        basis = tokens * jnp.exp(-alpha * jnp.log(cells.n))
        # [beta, A, D], summed over the cells one by one: the terms never exist all at once.
        total = jax.lax.fori_loop(0, len(cells.y), lambda c, sums: sums + loss(basis[:, c], c), zeros)
        flat = total.ravel()
        return jnp.min(flat), jnp.argmin(flat)

    def loss(basis: jax.Array, c: Any) -> jax.Array:
        fitted = basis[:, None, None] * axes.A[:, None] + axes.D
        if huber_delta is None:
            return cells.weight[c] * (fitted - cells.y[c]) ** 2
        size = jnp.abs(jnp.log(fitted) - jnp.log(cells.y[c]))
        within = jnp.minimum(size, huber_delta)
        return cells.weight[c] * within * (2 * size - within)

    zeros = jnp.zeros((len(axes.beta), len(axes.A), len(axes.D)))
    return jax.lax.map(plane, axes.alpha)
