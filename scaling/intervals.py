"""How far the fitted constants and predictions can be trusted: intervals by profile likelihood.

A profile says how much worse the fit gets when a constant, or a prediction, is imposed.
With s^2 = least loss / (n - p), the signed root +-sqrt((loss imposed - least loss) / s^2) is close to
Student's t with n - p degrees of freedom, whatever the coordinates; an interval holds the values whose
root stays below a critical one. It bends with the valley between A, alpha and D, where intervals from
a bootstrap's percentiles or from standard errors fall short.

A constant in a box needs care: where the truth is D = 0, an estimate can only err upwards, and the
usual critical value would cover it too often near zero. The critical root here is the one for which
the likelihood ratio against the best value *inside* the box covers the truth in 95 % of cases at
every distance from the bound (Feldman and Cousins, Phys. Rev. D 57, 3873, in the t approximation).
`benchmarks/scaling_coverage.py` measures what this covers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtr, stdtrit

from scaling.fit import Bounds, Fit, cells_of
from scaling.law import PARAMETERS, Params, error, gradient
from scaling.solver import Cells, Solution, solve_many
from scaling.table import ScoreTable

Interval = tuple[float, float]

_PULL = 1e3
"""Weight of a cell that pulls the law towards a value at a point, against 1 for the heaviest score."""
_FAR = 100.0
"""Errors are shares: one that lies so far away pulls the law as far as its bounds allow."""


class Problems(NamedTuple):
    """Fitted tables of the same shape: cells [tables, k], constants [tables]."""

    cells: Cells[np.ndarray]
    params: Params[np.ndarray]
    objective: Float[np.ndarray, " tables"]
    """The least losses."""
    bounds: Bounds
    dof: int
    """Scores less free constants, at least 1."""


class Profile(NamedTuple):
    """One constant imposed at several values and the others refitted; params leaves [values]."""

    name: str
    values: Float[np.ndarray, " values"]
    objective: Float[np.ndarray, " values"]
    params: Params[np.ndarray]
    limit: float
    """The loss below which a value is inside the interval, away from bounds."""
    interval: Interval


def problem_of(table: ScoreTable, fit: Fit) -> Problems:
    """One fitted table."""
    cells = Cells(*(leaf[None] for leaf in cells_of(table, fit.law, fit.loss)))
    params = Params(*(np.array([float(p)]) for p in fit.law.params))
    return Problems(cells, params, np.array([fit.objective]), fit.bounds, fit.n_points - fit.n_parameters)


def constant_intervals(problems: Problems, level: float = 0.95) -> dict[str, Float[np.ndarray, "tables 2"]]:
    """Interval of each constant; an end may be infinite where nothing limits it."""
    k = len(problems.objective)
    free = [p for p in range(4) if problems.bounds.lower[p] < problems.bounds.upper[p]]
    row, which, side = (a.ravel() for a in np.meshgrid(np.arange(k), free, (-1, 1), indexing="ij"))
    estimate = np.stack(problems.params)[which, row]
    bound = np.where(side < 0, *(np.array(ends, np.float64)[which] for ends in problems.bounds))
    # A is imposed by its logarithm, in which its profile is straighter.
    is_a = which == 0

    def inward(x: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.where(is_a[at], np.log(np.maximum(x, 1e-300)), x)

    def outward(z: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.where(is_a[at], np.exp(np.minimum(z, 700)), z)

    def loss(z: np.ndarray, at: np.ndarray) -> np.ndarray:
        return impose(problems, row[at], which[at], outward(z, at)).objective

    everything = np.arange(len(row))
    deviation = standard_errors(problems)[row, which]
    bound = np.where(is_a & (bound <= 0), -np.inf, inward(bound, everything))
    ends = _find_ends(loss, inward(estimate, everything), deviation, bound, side, problems, row, level)
    ends = outward(ends, everything).reshape(k, len(free), 2)
    found = {PARAMETERS[p]: ends[:, i] for i, p in enumerate(free)}
    held = {n: np.repeat(np.reshape(x, (-1, 1)), 2, axis=1) for n, x in problems.params._asdict().items()}
    return held | found


def error_intervals(
    problems: Problems, n: Float[np.ndarray, " points"], t: Float[np.ndarray, " points"], level: float = 0.95
) -> Float[np.ndarray, "tables points 2"]:
    """Interval of the error that the law has at sizes n (billions) and T = t tokens."""
    k, points = len(problems.objective), len(n)
    row, point, side = (
        a.ravel() for a in np.meshgrid(np.arange(k), np.arange(points), (-1, 1), indexing="ij")
    )
    pull = _PULL * np.max(problems.cells.weight, axis=1)[row]

    def pulled(y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The law pulled towards y: its value at the point, and its loss without the pull. Whatever the
        pull's weight, no law with that value there has less loss."""
        extra = Cells(n[point[at]], t[point[at]], y, pull[at])
        cells = Cells(
            *(
                np.concatenate([a, b[:, None]], axis=1)
                for a, b in zip(_rows(problems.cells, row[at]), extra, strict=True)
            )
        )
        start = Params(*(leaf[row[at]] for leaf in _positive(problems.params)))
        found = solve_many(start, cells, *problems.bounds)
        there = error(found.params, extra.n, extra.t)
        return there, found.objective - pull[at] * (there - y) ** 2

    estimate = error(Params(*(leaf[row] for leaf in problems.params)), n[point], t[point])
    deviation = error_standard_errors(problems, n, t)[row, point]
    bound = np.where(side < 0, -np.inf, np.inf)
    ends = _find_ends(lambda y, at: pulled(y, at)[1], estimate, deviation, bound, side, problems, row, level)
    # Where no pull reaches the limit, the bounds of the constants end the interval: what the law has there.
    ends = np.where(np.isfinite(ends), ends, estimate + side * _FAR)
    return pulled(ends, np.arange(len(ends)))[0].reshape(k, points, 2)


def profiles(table: ScoreTable, fit: Fit, points: int = 64, level: float = 0.95) -> dict[str, Profile]:
    """The profile of each free constant, a little beyond its interval; nothing for a Huber loss,
    where losses are not squares, or where no degree of freedom or no residual is left."""
    problems = problem_of(table, fit)
    tiny = 1e-20 * fit.n_points
    if fit.loss == "huber" or problems.dof < 1 or fit.objective <= tiny:
        return {}
    ends = constant_intervals(problems, level)
    free = [p for p in range(4) if fit.bounds.lower[p] < fit.bounds.upper[p]]
    values = np.zeros((len(free), points))
    for i, p in enumerate(free):
        low, high = ends[PARAMETERS[p]][0]
        top = high if np.isfinite(high) else 2 * fit.law.params[p] + 1
        beyond = 0.3 * (top - low) + 1e-12
        least, most = fit.bounds.lower[p], fit.bounds.upper[p]
        values[i] = np.linspace(max(low - beyond, least, 1e-6 * (p == 0)), min(top + beyond, most), points)
    which = np.repeat(free, points)
    found = impose(problems, np.zeros(len(which), int), which, values.ravel())
    limit = fit.objective * (1 + stdtrit(problems.dof, (1 + level) / 2) ** 2 / problems.dof)
    curves = {}
    for i, p in enumerate(free):
        part = slice(i * points, (i + 1) * points)
        name = PARAMETERS[p]
        low, high = ends[name][0]
        params = Params(*(leaf[part] for leaf in found.params))
        curves[name] = Profile(
            name, values[i], found.objective[part], params, float(limit), (float(low), float(high))
        )
    return curves


def impose(
    problems: Problems,
    row: Int[np.ndarray, " refits"],
    which: Int[np.ndarray, " refits"],
    values: Float[np.ndarray, " refits"],
) -> Solution[np.ndarray]:
    """Refits, each of table `row` with constant number `which` held at `values`."""
    start, lower, upper = (
        np.stack([np.broadcast_to(np.asarray(leaf, np.float64), len(problems.objective)) for leaf in params])
        for params in (problems.params, *problems.bounds)
    )
    start, lower, upper = (stacked[:, row].copy() for stacked in (start, lower, upper))
    for stacked in (start, lower, upper):
        stacked[which, np.arange(len(row))] = values
    cells = _rows(problems.cells, row)
    return solve_many(_positive(Params(*start)), cells, Params(*lower), Params(*upper))


def standard_errors(problems: Problems) -> Float[np.ndarray, "tables 4"]:
    """Linear standard errors of (log A, alpha, beta, D)."""
    return np.sqrt(np.maximum(np.einsum("kii->ki", _covariance(problems)), 0))


def error_standard_errors(
    problems: Problems, n: Float[np.ndarray, " points"], t: Float[np.ndarray, " points"]
) -> Float[np.ndarray, "tables points"]:
    """Linear standard errors of the law's error at sizes n and tokens t."""
    k = len(problems.objective)
    gradient = _jacobian(problems, *(np.tile(x, (k, 1)) for x in (n, t)))
    return np.sqrt(np.maximum(np.einsum("kpi,kij,kpj->kp", gradient, _covariance(problems), gradient), 0))


def _jacobian(
    problems: Problems, n: Float[np.ndarray, "tables k"], t: Float[np.ndarray, "tables k"]
) -> Float[np.ndarray, "tables k 4"]:
    """Derivatives of the law at n and t by (log A, alpha, beta, D), 0 for held ones."""
    p = Params(*(leaf[:, None] for leaf in problems.params))
    free = np.array([lo < hi for lo, hi in zip(*problems.bounds, strict=True)])
    return gradient(p, n, t) * free


def _covariance(problems: Problems) -> Float[np.ndarray, "tables 4 4"]:
    """Linear covariance of (log A, alpha, beta, D)."""
    cells = problems.cells
    jacobian = _jacobian(problems, cells.n, cells.t)
    information = np.einsum("kci,kcj,kc->kij", jacobian, jacobian, cells.weight)
    scale = np.sqrt(np.maximum(np.einsum("kii->ki", information), 1e-300))
    scale = scale[:, :, None] * scale[:, None, :]
    variance = problems.objective / problems.dof
    return np.linalg.pinv(information / scale, rcond=1e-12, hermitian=True) / scale * variance[:, None, None]


def critical_root(
    distance: Float[np.ndarray, " points"], dof: int, level: float
) -> Float[np.ndarray, " points"]:
    """The root that a truth `distance` standard errors inside a bound exceeds in 1 - level of cases.

    Solves P(t > c) + P(t < -c, or the ratio against the estimate held at the bound exceeds c^2).
    """
    x = distance
    low, high = np.zeros_like(x), np.full_like(x, stdtrit(dof, (1 + level) / 2))
    for _ in range(40):
        c = (low + high) / 2
        at_bound = (x**2 - c**2) / (2 * np.maximum(x, 1e-12)) - x
        missed = stdtr(dof, -c) + stdtr(dof, np.where(x > c, -c, at_bound))
        low, high = np.where(missed > 1 - level, c, low), np.where(missed > 1 - level, high, c)
    return (low + high) / 2


def _target_root(to_bound: Float[np.ndarray, " ends"], dof: int, level: float) -> Float[np.ndarray, " ends"]:
    """Where a signed root that ends at `to_bound` on the bound meets its own critical root."""
    axis = np.linspace(0, 8, 400)
    critical = critical_root(axis, dof, level)
    low, high = np.zeros_like(to_bound), np.full_like(to_bound, critical[-1])
    for _ in range(40):
        middle = (low + high) / 2
        inside = middle < np.interp(to_bound - middle, axis, critical)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return (low + high) / 2


def _find_ends(
    loss: Callable[[np.ndarray, np.ndarray], np.ndarray],
    estimate: Float[np.ndarray, " ends"],
    deviation: Float[np.ndarray, " ends"],
    bound: Float[np.ndarray, " ends"],
    side: Int[np.ndarray, " ends"],
    problems: Problems,
    row: Int[np.ndarray, " ends"],
    level: float,
) -> Float[np.ndarray, " ends"]:
    """Where each profile leaves its interval on the given side (-1 or 1).

    loss(values, at) evaluates the problems of the numbers `at`. First the bounds are tried, then an
    outer point is sought by doubling steps, then the end by the Illinois method.
    """
    least, dof = problems.objective[row], problems.dof
    variance = np.maximum(least / dof, 1e-300)

    def root(values: np.ndarray, at: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(loss(values, at) - least[at], 0.0) / variance[at])

    end, target = bound.copy(), np.full(len(bound), float(stdtrit(dof, (1 + level) / 2)))
    todo = (np.abs(estimate - bound) > 1e-9) & (least > 1e-26)
    end[least <= 1e-26] = estimate[least <= 1e-26]
    tried = np.flatnonzero(todo & np.isfinite(bound))
    if len(tried):
        to_bound = root(bound[tried], tried)
        target[tried] = _target_root(to_bound, dof, level)
        todo[tried[to_bound <= stdtrit(dof, level)]] = False
    at = np.flatnonzero(todo)
    inner, outer = estimate[at], estimate[at]
    below, above = -target[at], -target[at]
    step = np.maximum(1.2 * target[at] * deviation[at], 1e-9)
    for _ in range(14):
        short = np.flatnonzero(above < 0)
        if len(short) == 0:
            break
        inner[short], below[short] = outer[short], above[short]
        reach = np.abs(bound[at[short]] - outer[short])
        outer[short] += side[at[short]] * np.minimum(step[short], 0.999999 * reach)
        above[short] = root(outer[short], at[short]) - target[at[short]]
        step[short] *= 2
    end[at[above < 0]] = np.where(np.isfinite(bound), bound, side * np.inf)[at[above < 0]]
    going = np.flatnonzero(above >= 0)
    for _ in range(25):
        if len(going) == 0:
            break
        a, b, fa, fb = inner[going], outer[going], below[going], above[going]
        # Where A is beyond all measure the loss is infinite, and no line leads back: halve the way.
        share = np.divide(fb, fb - fa, out=np.full_like(fb, 0.5), where=np.isfinite(fb))
        x = b - share * (b - a)
        f = root(x, at[going]) - target[at[going]]
        is_out = f >= 0
        # Illinois: an end that stays twice counts half, so that both close in.
        inner[going], outer[going] = np.where(is_out, a, x), np.where(is_out, x, b)
        below[going], above[going] = np.where(is_out, fa / 2, f), np.where(is_out, f, fb / 2)
        end[at[going]] = x
        going = going[np.abs(f) > 1e-5]
    return end


def _rows(cells: Cells[np.ndarray], row: np.ndarray) -> Cells[np.ndarray]:
    return Cells(*(leaf[row] for leaf in cells))


def _positive(params: Params[np.ndarray]) -> Params[np.ndarray]:
    """The same with A above zero, where the solver's logarithm can start."""
    return params._replace(A=np.maximum(params.A, 1e-12))
