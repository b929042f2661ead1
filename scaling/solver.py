"""Levenberg-Marquardt for the law, in a box, many problems at once.

Works on x = (log A, alpha, beta, D): the power law is then linear inside the exponential, which
straightens the curved valley between A and the exponents. A parameter that sits on its bound and
wants to leave the box is held there for that step; the rest moves freely.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.law import Params, error

Array = jax.Array | np.ndarray

_BATCH = 256
_CELLS = 32
"""Sizes that problems and cells are padded to."""


class Cells(NamedTuple):
    """Observed cells, flat. All fields float, shape [cells]."""

    n: Array
    """LLM size in billions."""
    t: Array
    """Tokens T under the chosen convention."""
    y: Array
    """Error, 1 - score."""
    weight: Array
    """Weight of the squared residual; 0 leaves the cell out."""


class Solution(NamedTuple):
    """One local optimum, or a batch of them along a leading axis."""

    params: Params
    objective: Array
    """Weighted sum of squared residuals."""
    converged: Array
    """Whether the gradient vanished on every free parameter."""
    iterations: Array


class _State(NamedTuple):
    x: jax.Array
    objective: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    damping: jax.Array
    iterations: jax.Array
    converged: jax.Array


def to_vector(params: Params) -> jax.Array:
    """Law constants to solver coordinates [..., 4]; A = 0 becomes -inf."""
    return jnp.stack(jnp.broadcast_arrays(jnp.log(params.A), *params[1:]), axis=-1)


def from_vector(x: jax.Array) -> Params:
    """Solver coordinates [..., 4] back to law constants."""
    return Params(jnp.exp(x[..., 0]), x[..., 1], x[..., 2], x[..., 3])


def solve(
    start: Params,
    cells: Cells,
    lower: Params,
    upper: Params,
    max_iterations: int = 200,
    tolerance: float = 1e-7,
) -> Solution:
    """Minimises the weighted squared error from one start; vmap for many.

    Converged means: each free column of the Jacobian is orthogonal to the residual vector to
    within `tolerance` (cosine), or the residuals vanish. Works at the precision of its arguments;
    call it under `jax.enable_x64(True)` with float64 arrays.
    """
    low, high = to_vector(lower), to_vector(upper)
    root_weight = jnp.sqrt(cells.weight)
    # Residuals below this are round-off of an exact fit, where the cosine test means nothing.
    nothing = 1e-28 * jnp.sum(cells.weight * (cells.y**2 + 1e-4))

    def residual(x: jax.Array) -> jax.Array:
        return root_weight * (error(from_vector(x), cells.n, cells.t) - cells.y)

    def derivatives(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        r, jacobian = residual(x), jax.jacfwd(residual)(x)
        return r @ r, jacobian.T @ r, jacobian.T @ jacobian

    def free_parameters(s: _State) -> jax.Array:
        pinned = ((s.x <= low) & (s.gradient >= 0)) | ((s.x >= high) & (s.gradient <= 0))
        return ~pinned

    def is_optimal(s: _State) -> jax.Array:
        scale = jnp.sqrt(jnp.diagonal(s.hessian) * s.objective)
        steep = jnp.abs(s.gradient) > tolerance * scale
        return (s.objective <= nothing) | ~jnp.any(steep & free_parameters(s))

    def advance(s: _State) -> _State:
        free = free_parameters(s)
        hessian = jnp.where(free[:, None] & free[None, :], s.hessian, 0.0)
        # Damping each axis by its own curvature makes the step independent of units.
        diagonal = jnp.diagonal(hessian) * s.damping + jnp.where(free, 1e-30, 1.0)
        step = -jnp.linalg.solve(hessian + jnp.diag(diagonal), jnp.where(free, s.gradient, 0.0))
        x = jnp.clip(s.x + step, low, high)
        objective, gradient, hessian = derivatives(x)
        better = objective < s.objective
        damping = jnp.where(better, jnp.maximum(s.damping / 5, 1e-12), s.damping * 4)
        moved = _State(x, objective, gradient, hessian, damping, s.iterations + 1, s.converged)
        kept = s._replace(damping=damping, iterations=s.iterations + 1)
        s = jax.tree.map(lambda a, b: jnp.where(better, a, b), moved, kept)
        return s._replace(converged=is_optimal(s))

    def going(s: _State) -> jax.Array:
        return ~s.converged & (s.iterations < max_iterations) & (s.damping < 1e16)

    x = jnp.clip(to_vector(start), low, high)
    first = _State(x, *derivatives(x), jnp.asarray(1e-2, x.dtype), jnp.asarray(0), jnp.asarray(False))
    last = jax.lax.while_loop(going, advance, first._replace(converged=is_optimal(first)))
    return Solution(from_vector(last.x), last.objective, last.converged, last.iterations)


_solve_batch = jax.jit(jax.vmap(solve))


def solve_many(starts: Params, cells: Cells, lower: Params, upper: Params) -> Solution:
    """Solves K problems in float64, whatever the global precision; NumPy leaves [K].

    Leaves of `starts` and of the bounds are scalars or [K]; those of `cells` are [cells] or
    [K, cells]. Problems and cells are padded to round numbers, so that one compilation serves
    tables of different sizes and any K.
    """
    scalars = (starts, lower, upper)
    count = max(np.size(leaf) for leaf in jax.tree.leaves(scalars))
    count = max([count] + [len(leaf) for leaf in cells if np.ndim(leaf) == 2])
    width = np.shape(cells.n)[-1]
    missing_cells, missing = -width % _CELLS, -count % _BATCH

    def scalar(leaf: Array) -> np.ndarray:
        return np.pad(np.broadcast_to(np.asarray(leaf, np.float64), count), (0, missing), mode="edge")

    def row(leaf: Array) -> np.ndarray:
        full = np.broadcast_to(np.asarray(leaf, np.float64), (count, width))
        full = np.pad(full, ((0, 0), (0, missing_cells)), constant_values=1.0)
        return np.pad(full, ((0, missing), (0, 0)), mode="edge")

    starts, lower, upper = jax.tree.map(scalar, scalars)
    cells = jax.tree.map(row, cells)
    cells.weight[:, width:] = 0.0
    problems = (starts, cells, lower, upper)
    with jax.enable_x64(True):
        batches = [
            _solve_batch(*jax.tree.map(lambda leaf, at=at: leaf[at : at + _BATCH], problems))
            for at in range(0, count, _BATCH)
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches)
