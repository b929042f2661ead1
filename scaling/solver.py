"""The searches of the fit: Levenberg-Marquardt in a box, many problems at once, and the published grid.

Works on x = (log A, alpha, beta, D): the power law is then linear inside the exponential, which
straightens the curved valley between A and the exponents. A parameter that sits on its bound and
wants to leave the box is held there for that step; the rest moves freely.

Beside it the published method: the error of every point of a grid, and the point where it is least. The
authors' grid has 50 x 100 x 100 x 10 points over A, alpha, beta and D; they shuffled it without a seed and
stopped at 20 %. Here all of it is evaluated, each point on all cells, in one compiled loop.
"""

import functools
import threading
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from scaling.law import Leaf, Params

_BATCH = 256
_CELLS = 32
"""Sizes that problems and cells are padded to."""
PUBLISHED_POINTS = Params(50, 100, 100, 10)
"""Points per axis, ends included: 5,000,000 in all."""


class Cells(NamedTuple, Generic[Leaf]):
    """Observed cells, flat: float [k], or [..., k] for a batch of tables."""

    n: Leaf
    """LLM size in billions."""
    t: Leaf
    """Tokens T under the chosen convention."""
    y: Leaf
    """Error, 1 - score."""
    weight: Leaf
    """Weight of the cell's loss; 0 leaves the cell out."""


class Solution(NamedTuple, Generic[Leaf]):
    """One local optimum, or a batch of them along a leading axis."""

    params: Params[Leaf]
    objective: Leaf
    """Weighted sum of squared residuals; under a Huber loss, twice the weighted sum of losses, which
    is the sum of squares where all residuals are small."""
    converged: Leaf
    """Whether the gradient vanished on every free parameter."""
    iterations: Leaf


class _State(NamedTuple):
    x: jax.Array
    objective: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    scale: jax.Array
    damping: jax.Array
    iterations: jax.Array
    converged: jax.Array


def to_vector(params: Params[jax.Array]) -> Float[Array, "... 4"]:
    """Law constants to solver coordinates; A = 0 becomes -inf."""
    return jnp.stack(jnp.broadcast_arrays(jnp.log(params.A), *params[1:]), axis=-1)


def from_vector(x: Float[Array, "... 4"]) -> Params[jax.Array]:
    """Solver coordinates back to law constants."""
    return Params(jnp.exp(x[..., 0]), x[..., 1], x[..., 2], x[..., 3])


def derivatives(
    x: Float[Array, "4"], cells: Cells[jax.Array], huber_delta: float | Float[Array, ""] | None
) -> tuple[Float[Array, ""], Float[Array, "4"], Float[Array, "4 4"], Float[Array, "4"]]:
    """Objective, half its gradient, its Gauss-Newton matrix, and the scale of each axis.

    Squared residuals y_fit - y by default. With `huber_delta`, residuals are log y_fit - log y, and
    count squared up to delta and linearly above, so that their curvature vanishes there; `scale` is
    the diagonal of the matrix in which they keep the weight delta / |r| instead.
    """
    log_n, log_t = jnp.log(cells.n), jnp.log(cells.t)
    power = jnp.exp(x[0] - x[1] * log_n - x[2] * log_t)
    fitted = power + x[3]
    jacobian = jnp.stack([power, -power * log_n, -power * log_t, jnp.ones_like(power)])
    weight = cells.weight
    if huber_delta is None:
        r = fitted - cells.y
        weighted = jacobian * weight
        hessian = weighted @ jacobian.T
        return (weight * r) @ r, weighted @ r, hessian, jnp.diagonal(hessian)
    r, jacobian = jnp.log(fitted) - jnp.log(cells.y), jacobian / fitted
    size = jnp.abs(r)
    inside = size <= huber_delta
    loss = jnp.where(inside, r * r, huber_delta * (2 * size - huber_delta))
    slope = jnp.clip(r, -huber_delta, huber_delta)
    hessian = (jacobian * (weight * inside)) @ jacobian.T
    scale = (jacobian * jacobian) @ (weight * huber_delta / jnp.maximum(size, huber_delta))
    return weight @ loss, jacobian @ (weight * slope), hessian, scale


def solve(
    start: Params[jax.Array],
    cells: Cells[jax.Array],
    lower: Params[jax.Array],
    upper: Params[jax.Array],
    huber_delta: Float[Array, ""] | None = None,
    max_iterations: int = 300,
    tolerance: float = 1e-7,
) -> Solution[jax.Array]:
    """Minimises the weighted loss from one start; vmap for many.

    Converged means: each free column of the Jacobian is orthogonal to the residual vector to
    within `tolerance` (cosine), or the residuals vanish. Works at the precision of its arguments;
    call it under `jax.enable_x64(True)` with float64 arrays.
    """
    low, high = to_vector(lower), to_vector(upper)
    # Residuals below this are round-off of an exact fit, where the cosine test means nothing.
    nothing = 1e-28 * jnp.sum(cells.weight * (cells.y**2 + 1e-4))

    def free_parameters(x: Float[Array, "4"], gradient: Float[Array, "4"]) -> Bool[Array, "4"]:
        return ~(((x <= low) & (gradient >= 0)) | ((x >= high) & (gradient <= 0)))

    def advance(s: _State) -> _State:
        free = free_parameters(s.x, s.gradient)
        # Damping each axis by its own curvature makes the step independent of units.
        damped = jnp.where(free, s.scale * s.damping + 1e-30, 1.0)
        hessian = jnp.where(free[:, None] & free[None, :], s.hessian, 0.0) + jnp.diag(damped)
        step = _solve_positive(hessian, jnp.where(free, s.gradient, 0.0))
        x = jnp.clip(s.x - step, low, high)
        trial = _State(x, *derivatives(x, cells, huber_delta), s.damping, s.iterations, s.converged)
        better = trial.objective < s.objective
        damping = jnp.where(better, jnp.maximum(s.damping / 2, 1e-12), s.damping * 2)
        s = jax.tree.map(lambda a, b: jnp.where(better, a, b), trial, s)
        steep = jnp.abs(s.gradient) > tolerance * jnp.sqrt(s.scale * s.objective)
        converged = (s.objective <= nothing) | ~jnp.any(steep & free_parameters(s.x, s.gradient))
        return s._replace(damping=damping, iterations=s.iterations + 1, converged=converged)

    def going(s: _State) -> jax.Array:
        return ~s.converged & (s.iterations < max_iterations) & (s.damping < 1e16)

    x = jnp.clip(to_vector(start), low, high)
    # The first step is zero and only evaluates, so that the program holds the derivatives once.
    one, zero = jnp.ones((), x.dtype), jnp.zeros_like(x)
    first = _State(
        x,
        jnp.inf * one,
        zero,
        jnp.eye(4, dtype=x.dtype),
        zero,
        2e-2 * one,
        jnp.asarray(0),
        jnp.asarray(False),
    )
    last = jax.lax.while_loop(going, advance, first)
    return Solution(from_vector(last.x), last.objective, last.converged, last.iterations)


def _solve_positive(matrix: Float[Array, "4 4"], right: Float[Array, "4"]) -> Float[Array, "4"]:
    """x of matrix x = right for a positive definite matrix, by Cholesky written out.

    A batched LAPACK call costs more than all else in a step.
    """
    size = range(4)
    low: dict[tuple[int, int], jax.Array] = {}
    for i in size:
        for j in range(i + 1):
            rest = matrix[i, j] - sum(low[i, k] * low[j, k] for k in range(j))
            low[i, j] = jnp.sqrt(rest) if i == j else rest / low[j, j]
    forward: list[jax.Array] = []
    for i in size:
        forward.append((right[i] - sum(low[i, k] * forward[k] for k in range(i))) / low[i, i])
    x = dict.fromkeys(size, right[0])
    for i in reversed(size):
        x[i] = (forward[i] - sum(low[k, i] * x[k] for k in range(i + 1, 4))) / low[i, i]
    return jnp.stack(list(x.values()))


@functools.cache
def _batched(huber: bool) -> "jax.stages.Wrapped":
    over = (0, 0, 0, 0, None)
    return jax.jit(jax.vmap(solve, in_axes=over if huber else over[:4]))


def compile_in_background() -> threading.Thread:
    """Starts compiling `solve_many` for squared residuals, while this thread does something else; join it
    before the first solve."""

    def compile_once() -> None:
        ones = np.ones(1)
        box = Params(*(0.0 * ones for _ in range(4))), Params(*(ones for _ in range(4)))
        solve_many(Params(*(ones / 2 for _ in range(4))), Cells(ones, ones, ones, ones), *box)

    thread = threading.Thread(target=compile_once, name="compile")
    thread.start()
    return thread


def solve_many(
    starts: Params[float] | Params[np.ndarray],
    cells: Cells[np.ndarray],
    lower: Params[float] | Params[np.ndarray],
    upper: Params[float] | Params[np.ndarray],
    huber_delta: float | None = None,
) -> Solution[np.ndarray]:
    """Solves many problems in float64, whatever the global precision.

    Leaves of `starts` and of the bounds are scalars or [problems], those of `cells` [k] or [problems, k],
    those of the result [problems]. Problems and cells are padded to round numbers, so that one compilation serves
    tables of different sizes and any number of problems.
    """
    scalars = (starts, lower, upper)
    count = max(np.size(leaf) for leaf in jax.tree.leaves(scalars))
    count = max([count] + [len(leaf) for leaf in cells if np.ndim(leaf) == 2])
    width = np.shape(cells.n)[-1]
    missing_cells, missing = -width % _CELLS, -count % _BATCH

    def scalar(leaf: float | np.ndarray) -> Float[np.ndarray, " problems"]:
        return np.pad(np.broadcast_to(np.asarray(leaf, np.float64), count), (0, missing), mode="edge")

    def row(leaf: np.ndarray) -> Float[np.ndarray, "problems k"]:
        full = np.broadcast_to(np.asarray(leaf, np.float64), (count, width))
        full = np.pad(full, ((0, 0), (0, missing_cells)), constant_values=1.0)
        return np.pad(full, ((0, missing), (0, 0)), mode="edge")

    starts, lower, upper = jax.tree.map(scalar, scalars)
    cells = jax.tree.map(row, cells)
    cells.weight[:, width:] = 0.0
    problems = (starts, cells, lower, upper)
    extra = () if huber_delta is None else (np.float64(huber_delta),)
    with jax.enable_x64(True):
        run = _batched(huber_delta is not None)
        batches = [
            run(*jax.tree.map(lambda leaf, at=at: leaf[at : at + _BATCH], problems), *extra)
            for at in range(0, count, _BATCH)
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches)


class GridOptimum(NamedTuple):
    """The best grid point, its objective as in `Solution`, and how many points were compared."""

    params: Params[float]
    objective: float
    n_points: int


def search_grid(
    cells: Cells[np.ndarray],
    lower: Params[float],
    upper: Params[float],
    huber_delta: float | None = None,
    points: Params[int] = PUBLISHED_POINTS,
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
    best = int(k), first, int(j), int(m)
    params = Params(*(float(axis[i]) for axis, i in zip(axes, best, strict=True)))
    return GridOptimum(params, float(least[first]), int(np.prod([len(axis) for axis in axes])))


@functools.partial(jax.jit, static_argnames="huber_delta")
def _evaluate(
    axes: Params[jax.Array], cells: Cells[jax.Array], huber_delta: float | None
) -> tuple[jax.Array, jax.Array]:
    """For each alpha, the least objective over the other axes and its index among (beta, A, D)."""
    tokens = jnp.exp(-axes.beta[:, None] * jnp.log(cells.t))

    def plane(alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
        basis = tokens * jnp.exp(-alpha * jnp.log(cells.n))
        # [beta, A, D], summed over the cells one by one: the terms never exist all at once.
        total = jax.lax.fori_loop(0, len(cells.y), lambda c, sums: sums + loss(basis[:, c], c), zeros)
        flat = total.ravel()
        return jnp.min(flat), jnp.argmin(flat)

    def loss(basis: jax.Array, c: jax.Array) -> jax.Array:
        fitted = basis[:, None, None] * axes.A[:, None] + axes.D
        if huber_delta is None:
            return cells.weight[c] * (fitted - cells.y[c]) ** 2
        size = jnp.abs(jnp.log(fitted) - jnp.log(cells.y[c]))
        within = jnp.minimum(size, huber_delta)
        return cells.weight[c] * within * (2 * size - within)

    zeros = jnp.zeros((len(axes.beta), len(axes.A), len(axes.D)))
    return jax.lax.map(plane, axes.alpha)
