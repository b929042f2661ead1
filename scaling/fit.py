"""The fit of the law: many starts at once, float64, exact gradients, no global switch.

Three losses: least squares; `weighted`, squares over the squares of the scores' standard errors; and
`huber`, on the logarithm of the error, which single bad scores hardly move.

Two independent methods answer the same question: Levenberg-Marquardt from hundreds of starts, and
variable projection (A and D are linear once the exponents are given, so only a plane is left to
search; not for `huber`). `Fit.converged` says that they agree. `grid` is the published method.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from quecc_jax.errors import UserError
from scaling.law import PARAMETERS, Law, Params, Tokens
from scaling.solver import Cells, Solution, search_grid, solve_many
from scaling.table import ScoreTable

Loss = Literal["least_squares", "weighted", "huber"]
Method = Literal["starts", "grid"]

HUBER_DELTA = 1e-3
_SAME_OBJECTIVE = 1e-6
"""Relative difference up to which two optima count as the same."""
_NET = 17
"""Points along a side of the net that `project_variables` starts from."""


class Bounds(NamedTuple):
    """A box for the constants, inclusive."""

    lower: Params[float]
    upper: Params[float]

    def with_fixed_d(self, d: float) -> "Bounds":
        """The same box with D held at `d`."""
        return Bounds(self.lower._replace(D=d), self.upper._replace(D=d))


NON_NEGATIVE = Bounds(Params(0.0, 0.0, 0.0, 0.0), Params(np.inf, 5.0, 5.0, 1.0))
"""The default. Exponents end at 5, far above any law seen, so that a mere step has an optimum."""
PUBLISHED_BOX = Bounds(Params(0.2, 0.0, 0.0, 0.0), Params(0.7, 0.2, 0.05, 0.3))
"""The ranges of the authors' grid search."""


class VariableProjection(NamedTuple):
    """The cross-check's own optimum; sse is weighted where the loss is."""

    params: Params[float]
    sse: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law and how it was reached.

    residuals are predicted minus measured error, NaN where a cell is missing. sse is the
    sum of their squares, r2 the explained share of the variance (NaN if all scores are equal).
    objective is what was minimised: sse; under `weighted` the sum of squares with weights of mean 1;
    under `huber` the sum of losses on the log of the error, twice over so that small residuals count
    squared. bounds_hit names parameters that ended on a bound, fixed ones excluded. n_agreeing counts
    the starts that reached the best optimum. cross_check is None for `huber`.
    """

    law: Law
    residuals: Float[np.ndarray, "N V"]
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
    cross_check: VariableProjection | None
    loss: Loss = "least_squares"
    huber_delta: float = HUBER_DELTA
    method: Method = "starts"
    objective: float = float("nan")

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
    loss: Loss = "least_squares",
    huber_delta: float = HUBER_DELTA,
    method: Method = "starts",
) -> Fit:
    """Fits the law to every observed cell of a table.

    `query_tokens` defaults to the table's own, then to 50 (the paper's plot). `fix_d` holds D.
    `huber_delta` is the log error (about the relative error) up to which `huber` counts squared.
    Method `grid` evaluates the published grid instead, whose box it is, and takes its best point.
    Raises UserError with fewer cells than free parameters, an impossible D, standard errors that
    `weighted` lacks, or a perfect score under `huber`.
    """
    if method == "grid":
        bounds = PUBLISHED_BOX
    if fix_d is not None:
        if not 0 <= fix_d < 1:
            raise UserError(f"D is an error and must be fixed within 0..1, not at {fix_d:g}.")
        bounds = bounds.with_fixed_d(fix_d)
    fixed = [low == high for low, high in zip(*bounds, strict=True)]
    law = Law(Params(0.0, 0.0, 0.0, 0.0), tokens, default_query_tokens(table, query_tokens))
    cells = cells_of(table, law, loss)
    n_parameters = 4 - sum(fixed)
    if len(cells.y) < n_parameters:
        raise UserError(
            f"{table.name!r} has {len(cells.y)} scores, fewer than the {n_parameters} parameters of the law; "
            "add cells or fix D."
        )
    delta = huber_delta if loss == "huber" else None
    if method == "grid":
        found = _from_grid(cells, bounds, delta)
    else:
        found = _from_starts(cells, bounds, n_starts, seed, delta)
    law = dataclasses.replace(law, params=found.params)
    residuals = law.error(table.params_b[:, None], table.visual_tokens[None, :]) - table.error
    sse = float(np.nansum(residuals**2))
    scale = float(np.sum((cells.y - cells.y.mean()) ** 2))
    return Fit(
        law=law,
        residuals=residuals,
        sse=sse,
        r2=1 - sse / scale if scale > 1e-24 * len(cells.y) else float("nan"),
        n_points=len(cells.y),
        n_parameters=n_parameters,
        bounds=bounds,
        bounds_hit=bounds_hit(found.params, bounds),
        n_starts=found.n_starts,
        n_agreeing=found.n_agreeing,
        iterations=found.iterations,
        converged=found.converged,
        cross_check=found.cross_check,
        loss=loss,
        huber_delta=huber_delta,
        method=method,
        objective=found.objective,
    )


class _Found(NamedTuple):
    params: Params[float]
    objective: float
    n_starts: int
    n_agreeing: int
    iterations: int
    converged: bool
    cross_check: VariableProjection | None


def _from_starts(
    cells: Cells[np.ndarray], bounds: Bounds, n_starts: int, seed: int, huber_delta: float | None
) -> _Found:
    starts = random_starts(cells, bounds, n_starts, seed)
    found = solve_many(starts, cells, *bounds, huber_delta)
    best = int(np.argmin(found.objective))
    params, objective = take(found, best).params, float(found.objective[best])
    mean = float(np.average(cells.y, weights=cells.weight))
    scale = float(np.sum(cells.weight * (cells.y - mean) ** 2))
    slack = _SAME_OBJECTIVE * objective + 1e-15 * scale + 1e-28 * len(cells.y)
    level = Params(mean - bounds.lower.D, 0.0, 0.0, bounds.lower.D)
    is_level = scale <= objective + slack and huber_delta is None and _inside(level, bounds)
    if is_level:
        # Nothing beats the mean, and many constants describe it: report the plainest.
        params, objective = level, scale
    check = None if huber_delta is not None else project_variables(cells, bounds)
    return _Found(
        params,
        objective,
        n_starts,
        int(np.sum(found.objective <= objective + slack)),
        int(found.iterations[best]),
        bool(found.converged[best] or is_level) and (check is None or objective <= check.sse + slack),
        check,
    )


def _from_grid(cells: Cells[np.ndarray], bounds: Bounds, huber_delta: float | None) -> _Found:
    """The best grid point; it counts as converged if the optimum in the box is at most 5 % better."""
    grid = search_grid(cells, *bounds, huber_delta)
    start = grid.params._replace(A=max(grid.params.A, 1e-6))
    best = take(solve_many(start, cells, *bounds, huber_delta), 0)
    least = float(best.objective)
    return _Found(
        grid.params,
        grid.objective,
        grid.n_points,
        1,
        0,
        grid.objective <= 1.05 * least,
        VariableProjection(best.params, least),
    )


def default_query_tokens(table: ScoreTable, query_tokens: float | None) -> float:
    """Q as asked for, else as the table says, else the paper's 50."""
    if query_tokens is not None:
        return query_tokens
    return 50.0 if table.query_tokens is None else table.query_tokens


def cells_of(table: ScoreTable, law: Law, loss: Loss = "least_squares") -> Cells[np.ndarray]:
    """The observed cells, float64 [k].

    Weights are 1; under `weighted` 1 / stderr^2, scaled to a mean of 1. Raises UserError where a
    standard error is missing or zero, and under `huber` where an error is zero and has no logarithm.
    """
    i, j = np.nonzero(np.isfinite(table.score))
    y, weight = table.error[i, j], np.ones(len(i))
    if loss == "weighted":
        if table.stderr is None:
            raise UserError(f"{table.name!r} has no 'stderr' to weight its scores by; use another --loss.")
        stderr = table.stderr[i, j]
        if not np.all(stderr > 0):
            k = int(np.argmin(stderr > 0))
            raise UserError(
                f"The standard error at {_where(table, i[k], j[k])} is missing or zero; "
                "a weighted fit needs a positive one for every score."
            )
        weight = 1 / stderr**2 / np.mean(1 / stderr**2)
    if loss == "huber" and np.any(y <= 0):
        k = int(np.argmin(y))
        raise UserError(
            f"The score at {_where(table, i[k], j[k])} is 1, and an error of zero has no logarithm; "
            "use another --loss."
        )
    return Cells(n=table.params_b[i], t=law.total(table.visual_tokens[j]), y=y, weight=weight)


def _where(table: ScoreTable, i: np.integer, j: np.integer) -> str:
    return f"{table.params_b[i]:g}B, {table.visual_tokens[j]:g} visual tokens"


def solve_like(fit: Fit, cells: Cells[np.ndarray]) -> Solution[np.ndarray]:
    """Refits under a fit's own loss, in its box and from its constants; leaves as in `solver.solve_many`."""
    start = fit.law.params._replace(A=max(fit.law.params.A, 1e-12))
    delta = fit.huber_delta if fit.loss == "huber" else None
    return solve_many(start, cells, *fit.bounds, delta)


def take(solution: Solution[np.ndarray], index: int) -> Solution[float]:
    """One entry of a batch, leaves as Python numbers."""
    return jax.tree.map(lambda leaf: leaf[index].item(), solution)


def bounds_hit(params: Params[float], bounds: Bounds) -> tuple[str, ...]:
    """Names of the parameters that lie on a bound and were free to leave it."""
    entries = zip(PARAMETERS, params, *bounds, strict=True)
    return tuple(name for name, p, low, high in entries if low < high and not low + 1e-9 < p < high - 1e-9)


def _inside(params: Params[float], bounds: Bounds) -> bool:
    return all(low <= p <= high for p, low, high in zip(params, *bounds, strict=True))


def random_starts(cells: Cells[np.ndarray], bounds: Bounds, count: int, seed: int) -> Params[np.ndarray]:
    """Starting points, leaves [count]: exponents and D drawn, A the best for them."""
    rng = np.random.default_rng(seed)

    def draw(low: float, high: float, widest: float) -> Float[np.ndarray, " starts"]:
        return rng.uniform(low, max(low, min(high, widest)), count)

    lower, upper = bounds
    alpha, beta = draw(lower.alpha, upper.alpha, 0.5), draw(lower.beta, upper.beta, 0.5)
    d = draw(lower.D, upper.D, float(cells.y.min()))
    basis = _basis(cells, alpha, beta)
    a = np.sum(basis * (cells.y - d[:, None]), axis=1) / np.sum(basis**2, axis=1)
    return Params(np.clip(a, max(lower.A, 1e-6), upper.A), alpha, beta, d)


def project_variables(cells: Cells[np.ndarray], bounds: Bounds, steps: int = 40) -> VariableProjection:
    """Minimum over (alpha, beta) of the exact linear solution in (A, D).

    From the best of a coarse net over the box, Gauss-Newton with Kaufman's Jacobian (the columns of
    the exponents, less their parts along the columns of A and D) and a line search. The bounds on the
    exponents must be finite.
    """
    low, high = (np.array([side.alpha, side.beta]) for side in bounds)
    # Exponents are small: the net is finer near the lower bound.
    axes = (lo + (hi - lo) * np.linspace(0, 1, _NET) ** 3 for lo, hi in zip(low, high, strict=True))
    net = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    root, lengths = np.sqrt(cells.weight), 0.5 ** np.arange(12)[:, None]
    logs = np.stack([np.log(cells.n), np.log(cells.t)], axis=1)

    def best(at: Float[np.ndarray, "exponents 2"]) -> tuple[Float[np.ndarray, "2"], float, float, float]:
        a, d, sse = _linear_part(cells, bounds, at[:, 0], at[:, 1])
        k = int(np.argmin(sse))
        return at[k], float(a[k]), float(d[k]), float(sse[k])

    at, a, d, sse = best(net)
    for _ in range(steps):
        basis = _basis(cells, at[:1], at[1:])[0]
        residual = root * (a * basis + d - cells.y)
        columns = (root * -a * basis)[:, None] * logs
        linear = [root * basis] if bounds.lower.A < a < bounds.upper.A else []
        linear += [root] if bounds.lower.D < d < bounds.upper.D else []
        if linear:
            q = np.linalg.qr(np.stack(linear, axis=1))[0]
            columns = columns - q @ (q.T @ columns)
        slope = columns.T @ residual
        held = ((at <= low) & (slope >= 0)) | ((at >= high) & (slope <= 0))
        step = -np.linalg.lstsq(np.where(held, 0.0, columns), residual, rcond=1e-12)[0]
        trial = best(np.clip(at + lengths * step, low, high))
        if not trial[-1] < sse * (1 - 1e-13):
            break
        at, a, d, sse = trial
    return VariableProjection(Params(a, float(at[0]), float(at[1]), d), sse)


def _basis(
    cells: Cells[np.ndarray], alpha: Float[np.ndarray, " exponents"], beta: Float[np.ndarray, " exponents"]
) -> Float[np.ndarray, "exponents k"]:
    return np.exp(-np.outer(alpha, np.log(cells.n)) - np.outer(beta, np.log(cells.t)))


def _linear_part(
    cells: Cells[np.ndarray],
    bounds: Bounds,
    alpha: Float[np.ndarray, " exponents"],
    beta: Float[np.ndarray, " exponents"],
) -> tuple[Float[np.ndarray, " exponents"], Float[np.ndarray, " exponents"], Float[np.ndarray, " exponents"]]:
    """Best A and D in the box for each pair of exponents, and the squared error.

    A convex quadratic in two variables has its bounded minimum inside or on an edge, so five
    candidates, each clipped along its edge, are exact.
    """
    basis, y, weight = _basis(cells, alpha, beta), cells.y, cells.weight
    count, first, second = weight.sum(), basis @ weight, basis**2 @ weight
    cross, total = basis @ (weight * y), weight @ y
    (a_low, _, _, d_low), (a_high, _, _, d_high) = bounds

    def best_a(d: float) -> np.ndarray:
        return np.clip((cross - d * first) / second, a_low, a_high)

    def best_d(a: np.ndarray) -> np.ndarray:
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
    sse = (a[..., None] * basis + d[..., None] - y) ** 2 @ weight
    k = np.argmin(sse, axis=0), np.arange(len(alpha))
    return a[k], d[k], sse[k]
