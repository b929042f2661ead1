"""How far the fitted constants can be trusted.

The bootstrap refits the law on hundreds of resampled tables at once; the profile of
D asks how much worse the fit gets when D is imposed, which shows the flat valley along which D and
the exponents trade against each other.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import fdtri

from scaling.errors import UserError
from scaling.fit import Bounds, Fit, cells_of, solve_like
from scaling.law import PARAMETERS, Params, error
from scaling.table import ScoreTable

Resample = Literal["residual", "cell", "parametric", "task"]
Interval = tuple[float, float]


class DProfile(NamedTuple):
    """Fits with D imposed. d, sse [K]; params leaves [K].

    interval is the range of D whose fit is not worse than the best by the 95 % F test; alpha and
    beta are the ranges of the exponents inside it.
    """

    d: np.ndarray
    sse: np.ndarray
    params: Params
    interval: Interval
    alpha: Interval
    beta: Interval


def bootstrap(
    table: ScoreTable, fit: Fit, resample: Resample = "residual", count: int = 1000, seed: int = 0
) -> Params:
    """Constants refitted to `count` resampled tables, leaves [count], float64.

    residual: fitted error plus residuals drawn with replacement, centred and widened by
    sqrt(n / (n - p)). parametric: fitted error plus normal noise of the same variance. In a weighted
    fit residuals are taken per standard error, in a Huber fit from the logarithm of the error. cell:
    whole cells drawn with replacement. task: the benchmarks that the score averages drawn with
    replacement; it answers how far the law depends on their choice.
    Raises ValueError where there are no degrees of freedom left to resample, UserError for `task`
    where the table has fewer than two tasks or one lacks a score.
    """
    dof = fit.n_points - fit.n_parameters
    if dof < 1:
        raise ValueError("as many parameters as points: there are no residuals to resample")
    cells = cells_of(table, fit.law, fit.loss)
    n = fit.n_points
    rng = np.random.default_rng(seed)
    y, weight = np.tile(cells.y, (count, 1)), np.tile(cells.weight, (count, 1))
    fitted = error(fit.law.params, np.asarray(cells.n), np.asarray(cells.t))
    # Residuals of equal variance: as they are, by standard error, or of the logarithm.
    is_log = fit.loss == "huber"
    spread = fitted if is_log else 1 / np.sqrt(np.asarray(cells.weight))
    residual = np.log(cells.y / fitted) if is_log else (np.asarray(cells.y) - fitted) / spread
    if resample == "residual":
        noise = ((residual - residual.mean()) * np.sqrt(n / dof))[rng.integers(n, size=(count, n))]
        y = fitted * np.exp(noise) if is_log else fitted + spread * noise
    elif resample == "parametric":
        noise = np.sqrt(np.sum(residual**2) / dof) * rng.standard_normal((count, n))
        y = fitted * np.exp(noise) if is_log else fitted + spread * noise
    elif resample == "task":
        y = y + _task_shifts(table, count, rng)
    else:
        draws = rng.integers(n, size=(count, n))
        weight = weight * (draws[:, :, None] == np.arange(n)).sum(axis=1)
    return solve_like(fit, cells._replace(y=y, weight=weight)).params


def _task_shifts(table: ScoreTable, count: int, rng: np.random.Generator) -> np.ndarray:
    """How the mean error changes when tasks are drawn anew, [count, observed cells]."""
    if len(table.tasks) < 2:
        raise UserError(f"{table.name!r} has no tasks to resample; resample residuals or cells instead.")
    observed = np.isfinite(table.score)
    errors = np.stack([1 - scores[observed] for scores in table.tasks.values()])
    for name, row in zip(table.tasks, errors, strict=True):
        if not np.isfinite(row).all():
            raise UserError(f"Task {name!r} lacks a score that the table has, so tasks cannot be resampled.")
    draws = rng.integers(len(errors), size=(count, len(errors)))
    return np.asarray(errors[draws].mean(axis=1) - errors.mean(axis=0))


def intervals(samples: Params, level: float = 0.95) -> dict[str, Interval]:
    """Percentile interval of each constant."""
    tail = 50 * (1 - level)
    ends = [np.percentile(leaf, [tail, 100 - tail]) for leaf in samples]
    return {name: (float(e[0]), float(e[1])) for name, e in zip(PARAMETERS, ends, strict=True)}


def profile_d(table: ScoreTable, fit: Fit, points: int = 64, level: float = 0.95) -> DProfile | None:
    """Best fit for each imposed D from its lower bound up to the smallest measured error.

    None where D was fixed or no degree of freedom is left.
    """
    dof = fit.n_points - fit.n_parameters
    low, high = fit.bounds.lower.D, fit.bounds.upper.D
    cells = cells_of(table, fit.law, fit.loss)
    smallest = float(np.min(cells.y))
    if low == high or dof < 1 or smallest <= low:
        return None
    d = np.linspace(low, min(high, low + (smallest - low) * 0.98), points)
    imposed = Bounds(fit.bounds.lower._replace(D=d), fit.bounds.upper._replace(D=d))
    share = np.maximum(smallest - d, 1e-6) / max(smallest - fit.law.params.D, 1e-6)
    p = fit.law.params
    start = Params(p.A * share, np.full(points, p.alpha), np.full(points, p.beta), d)
    found = solve_like(fit, cells, imposed, start)
    sse = np.asarray(found.objective)
    inside = sse <= fit.objective * (1 + fdtri(1, dof, level) / dof) + 1e-20

    def span(values: np.ndarray, best: float) -> Interval:
        kept = np.append(values[inside], best)
        return float(kept.min()), float(kept.max())

    return DProfile(
        d, sse, found.params, span(d, p.D), span(found.params.alpha, p.alpha), span(found.params.beta, p.beta)
    )


def findings(fit: Fit, profile: DProfile | None, ci: dict[str, Interval] | None) -> list[str]:
    """Plain sentences a reader must know before trusting the constants."""
    p, said = fit.law.params, []
    flat = p.alpha == 0 and p.beta == 0
    if flat:
        said.append(
            "Neither larger LLMs nor more visual tokens lower the error in these scores; "
            "the law is their mean, and A and D cannot be told apart."
        )
    for name, what in () if flat else (("alpha", "larger LLMs"), ("beta", "more visual tokens")):
        if name in fit.bounds_hit and getattr(p, name) == 0:
            said.append(
                f"{name} ended on its bound 0: in these scores {what} do not lower the error "
                "(without the bound it would turn negative or stay at zero)."
            )
        elif ci is not None and ci[name][0] < 1e-6 and getattr(fit.bounds.lower, name) == 0:
            said.append(f"The interval of {name} reaches 0: these scores do not establish that {what} help.")
    upper = [n for n in fit.bounds_hit if getattr(p, n) >= getattr(fit.bounds.upper, n) - 1e-9]
    if upper:
        said.append(f"{', '.join(upper)} ended on an upper bound: the box, not the scores, set the value.")
    if "D" in fit.bounds_hit and p.D == 0 and not flat:
        said.append("D ended on its bound 0: the best fit has no floor that size and tokens cannot remove.")
    if profile is not None and not flat and profile.interval[1] - profile.interval[0] > 0.02:
        low, high = profile.interval
        said.append(
            f"D is poorly identified: every D from {low:.3f} to {high:.3f} fits about equally well "
            f"(95 % F test), with alpha between {profile.alpha[0]:.3f} and {profile.alpha[1]:.3f} and "
            f"beta between {profile.beta[0]:.4f} and {profile.beta[1]:.4f}. "
            "The fitted curve is safer than its constants."
        )
    if fit.n_points == fit.n_parameters:
        said.append("There are exactly as many scores as parameters, so the fit cannot show its own error.")
    if not fit.converged:
        said.append(
            "The fit did not converge, or the cross-check found a better one; do not use its constants."
        )
    return said


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """Everything `assess` found. ci and best_count are None where nothing is left to resample.

    best_count is the 95 % interval of the V that is best at a fixed cost, within the table's range.
    """

    ci: dict[str, Interval] | None
    best_count: Interval | None
    ci_method: str
    profile: DProfile | None
    findings: list[str]
    samples: Params | None = None
    """The resampled constants, leaves [refits]."""


def assess(
    table: ScoreTable, fit: Fit, resample: Resample = "residual", count: int = 1000, seed: int = 0
) -> Uncertainty:
    """95 % intervals, the profile of D, and what they mean in words."""
    enough = fit.n_points > fit.n_parameters and count > 0
    ci, best_count, samples = None, None, None
    if enough:
        samples = bootstrap(table, fit, resample, count, seed)
        ci, best_count = intervals(samples), _best_count(table, fit, samples)
    profile = profile_d(table, fit)
    method = f"{resample} bootstrap, {count} refits, percentile, 95 %" if enough else "none"
    return Uncertainty(ci, best_count, method, profile, findings(fit, profile, ci), samples)


def _best_count(table: ScoreTable, fit: Fit, samples: Params) -> Interval:
    laws = (dataclasses.replace(fit.law, params=Params(*p)) for p in zip(*samples, strict=True))
    low, high = table.count_range
    ends = np.percentile([law.optimal_visual_tokens(low, high) for law in laws], [2.5, 97.5])
    return float(ends[0]), float(ends[1])
