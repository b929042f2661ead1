"""Least-squares fit of the law: many starts at once, float64, exact gradients, no global switch.

Two independent methods answer the same question: Levenberg-Marquardt from hundreds of starts, and
variable projection (A and D are linear once the exponents are given, so only a plane is left to
search). `Fit.converged` says that they agree.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from scaling.errors import UserError
from scaling.law import PARAMETERS, Law, Params, Tokens
from scaling.solver import Cells, Solution, solve_many
from scaling.table import ScoreTable

_SAME_OBJECTIVE = 1e-6
"""Relative difference up to which two optima count as the same."""


class Bounds(NamedTuple):
    """A box for the constants, inclusive."""

    lower: Params
    upper: Params

    def with_fixed_d(self, d: float) -> "Bounds":
        """The same box with D held at `d`."""
        return Bounds(self.lower._replace(D=d), self.upper._replace(D=d))


NON_NEGATIVE = Bounds(Params(0.0, 0.0, 0.0, 0.0), Params(np.inf, 5.0, 5.0, 1.0))
"""The default. Exponents end at 5, far above any law seen, so that a mere step has an optimum."""
PUBLISHED_BOX = Bounds(Params(0.2, 0.0, 0.0, 0.0), Params(0.7, 0.2, 0.05, 0.3))
"""The ranges of the authors' grid search."""


class VariableProjection(NamedTuple):
    """The cross-check's own optimum."""

    params: Params
    sse: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law and how it was reached.

    residuals [n, m] are predicted minus measured error, NaN where a cell is missing. sse is the
    sum of their squares, r2 the explained share of the variance (NaN if all scores are equal).
    bounds_hit names parameters that ended on a bound, fixed ones excluded. n_agreeing counts the
    starts that reached the best optimum.
    """

    law: Law
    residuals: np.ndarray
    sse: float
    r2: float
    n_points: int
    n_parameters: int
    bounds: Bounds
    bounds_hit: tuple[str, ...]
    n_starts: int
    n_agreeing: int
    iterations: int
    converged: bool
    cross_check: VariableProjection
    loss: str = "least_squares"

    @property
    def rmse(self) -> float:
        """Typical distance between law and score, in score units."""
        return float(np.sqrt(self.sse / self.n_points))


def fit_law(
    table: ScoreTable,
    tokens: Tokens = "V",
    query_tokens: float | None = None,
    bounds: Bounds = NON_NEGATIVE,
    fix_d: float | None = None,
    n_starts: int = 256,
    seed: int = 0,
) -> Fit:
    """Fits the law to every observed cell of a table.

    `query_tokens` defaults to the table's own, then to 50 (the paper's plot). `fix_d` holds D.
    Raises UserError with fewer cells than free parameters, or an impossible D.
    """
    if fix_d is not None:
        if not 0 <= fix_d < 1:
            raise UserError(f"D is an error and must be fixed within 0..1, not at {fix_d:g}.")
        bounds = bounds.with_fixed_d(fix_d)
    fixed = [low == high for low, high in zip(*bounds, strict=True)]
    law = Law(Params(0.0, 0.0, 0.0, 0.0), tokens, default_query_tokens(table, query_tokens))
    cells = cells_of(table, law)
    n_parameters = 4 - sum(fixed)
    if len(cells.y) < n_parameters:
        raise UserError(
            f"{table.name!r} has {len(cells.y)} scores, fewer than the {n_parameters} parameters of the law; "
            "add cells or fix D."
        )
    starts = random_starts(cells, bounds, n_starts, seed)
    found = solve_many(starts, cells, *bounds)
    best = int(np.argmin(found.objective))
    params = take(found, best).params
    sse = float(found.objective[best])
    scale = float(np.sum((cells.y - cells.y.mean()) ** 2))
    slack = _SAME_OBJECTIVE * sse + 1e-15 * scale + 1e-28 * len(cells.y)
    level = Params(float(cells.y.mean()) - bounds.lower.D, 0.0, 0.0, bounds.lower.D)
    if scale <= sse + slack and _inside(level, bounds):
        # Nothing beats the mean, and many constants describe it: report the plainest.
        params, sse = level, scale
    check = project_variables(cells, bounds)
    law = dataclasses.replace(law, params=params)
    residuals = law.error(table.params_b[:, None], table.visual_tokens[None, :]) - table.error
    return Fit(
        law=law,
        residuals=residuals,
        sse=sse,
        r2=1 - sse / scale if scale > 1e-24 * len(cells.y) else float("nan"),
        n_points=len(cells.y),
        n_parameters=n_parameters,
        bounds=bounds,
        bounds_hit=bounds_hit(params, bounds),
        n_starts=n_starts,
        n_agreeing=int(np.sum(found.objective <= sse + slack)),
        iterations=int(found.iterations[best]),
        converged=bool(found.converged[best] or params is level) and sse <= check.sse + slack,
        cross_check=check,
    )


def default_query_tokens(table: ScoreTable, query_tokens: float | None) -> float:
    """Q as asked for, else as the table says, else the paper's 50."""
    if query_tokens is not None:
        return query_tokens
    return 50.0 if table.query_tokens is None else table.query_tokens


def cells_of(table: ScoreTable, law: Law) -> Cells:
    """The observed cells, flat float64 NumPy arrays, each of weight 1."""
    i, j = np.nonzero(np.isfinite(table.score))
    return Cells(
        n=table.params_b[i],
        t=law.total(table.visual_tokens[j]),
        y=table.error[i, j],
        weight=np.ones(len(i)),
    )


def take(solution: Solution, index: int) -> Solution:
    """One entry of a batch, leaves as Python floats."""
    return jax.tree.map(lambda leaf: leaf[index].item(), solution)


def bounds_hit(params: Params, bounds: Bounds) -> tuple[str, ...]:
    """Names of the parameters that lie on a bound and were free to leave it."""
    entries = zip(PARAMETERS, params, *bounds, strict=True)
    return tuple(name for name, p, low, high in entries if low < high and not low + 1e-9 < p < high - 1e-9)


def _inside(params: Params, bounds: Bounds) -> bool:
    return all(low <= p <= high for p, low, high in zip(params, *bounds, strict=True))


def random_starts(cells: Cells, bounds: Bounds, count: int, seed: int) -> Params:
    """Starting points, leaves [count]: exponents and D drawn, A the best for them."""
    y = np.asarray(cells.y)
    rng = np.random.default_rng(seed)

    def draw(low: float, high: float, widest: float) -> np.ndarray:
        return rng.uniform(low, max(low, min(high, widest)), count)

    lower, upper = bounds
    alpha, beta = draw(lower.alpha, upper.alpha, 0.5), draw(lower.beta, upper.beta, 0.5)
    d = draw(lower.D, upper.D, float(y.min()))
    basis = _basis(cells, alpha, beta)
    a = np.sum(basis * (y - d[:, None]), axis=1) / np.sum(basis**2, axis=1)
    return Params(np.clip(a, max(lower.A, 1e-6), upper.A), alpha, beta, d)


def project_variables(cells: Cells, bounds: Bounds, side: int = 33, rounds: int = 60) -> VariableProjection:
    """Minimum over (alpha, beta) of the exact linear solution in (A, D), without derivatives.

    A window of side x side points moves to its best point and shrinks each round. The bounds on
    the exponents must be finite.
    """
    lower, upper = bounds
    low = np.array([lower.alpha, lower.beta])
    high = np.array([upper.alpha, upper.beta])
    corner, size = low, high - low
    best: tuple[float, Params] = (np.inf, lower)
    for _ in range(rounds):
        alpha, beta = (
            np.linspace(c, min(c + s, h), side) for c, s, h in zip(corner, size, high, strict=True)
        )
        grid = np.stack(np.meshgrid(alpha, beta, indexing="ij"), axis=-1).reshape(-1, 2)
        a, d, sse = _linear_part(cells, bounds, grid[:, 0], grid[:, 1])
        k = int(np.argmin(sse))
        if sse[k] < best[0]:
            best = (float(sse[k]), Params(*(float(v) for v in (a[k], *grid[k], d[k]))))
        at = np.array([best[1].alpha, best[1].beta])
        size = size * 0.6
        corner = np.clip(at - size / 2, low, np.maximum(low, high - size))
    return VariableProjection(best[1], best[0])


def _basis(cells: Cells, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return np.exp(-np.outer(alpha, np.log(cells.n)) - np.outer(beta, np.log(cells.t)))


def _linear_part(cells: Cells, bounds: Bounds, alpha: np.ndarray, beta: np.ndarray) -> tuple[Any, Any, Any]:
    """Best A and D in the box for each pair of exponents, and the squared error; all [K].

    A convex quadratic in two variables has its bounded minimum inside or on an edge, so five
    candidates, each clipped along its edge, are exact.
    """
    basis, y = _basis(cells, alpha, beta), np.asarray(cells.y)
    count, first, second = len(y), basis.sum(axis=1), (basis**2).sum(axis=1)
    cross, total = basis @ y, y.sum()
    (a_low, _, _, d_low), (a_high, _, _, d_high) = bounds

    def best_a(d: Any) -> Any:
        return np.clip((cross - d * first) / second, a_low, a_high)

    def best_d(a: Any) -> Any:
        return np.clip((total - a * first) / count, d_low, d_high)

    determinant = second * count - first**2
    safe = np.where(determinant > 1e-14 * second * count, determinant, np.inf)
    a_free = (cross * count - first * total) / safe
    d_free = best_d(a_free)
    inside = np.clip(a_free, a_low, a_high)
    pairs = [(inside, d_free)]
    pairs += [(best_a(d), np.full_like(first, d)) for d in (d_low, d_high) if np.isfinite(d)]
    edges = [np.full_like(first, a) for a in (a_low, a_high) if np.isfinite(a)]
    pairs += [(a, best_d(a)) for a in edges]
    a = np.stack([pair[0] for pair in pairs])
    d = np.stack([pair[1] for pair in pairs])
    sse = ((a[..., None] * basis + d[..., None] - y) ** 2).sum(axis=-1)
    k = np.argmin(sse, axis=0), np.arange(len(alpha))
    return a[k], d[k], sse[k]
