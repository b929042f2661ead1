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
    tolerance: float = 1e-8,
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


@jax.jit
def solve_starts(starts: Params, cells: Cells, lower: Params, upper: Params) -> Solution:
    """One problem from many starts: leaves of `starts` are [K], so are those of the solution."""
    return jax.vmap(solve, in_axes=(0, None, None, None))(starts, cells, lower, upper)


@jax.jit
def solve_problems(starts: Params, cells: Cells, lower: Params, upper: Params) -> Solution:
    """Many problems, one start each: leaves of every argument carry a leading axis [K]."""
    return jax.vmap(solve)(starts, cells, lower, upper)
