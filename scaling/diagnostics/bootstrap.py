"""The law refitted to resampled tables, a thousand at once: for everything that depends on all constants."""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from quecc_jax.errors import UserError
from scaling.fit import Fit, cells_of, solve_like
from scaling.intervals import Interval
from scaling.law import PARAMETERS, Params, error
from scaling.table import ScoreTable

Resample = Literal["residual", "cell", "parametric", "task"]


def bootstrap(
    table: ScoreTable, fit: Fit, resample: Resample = "residual", count: int = 1000, seed: int = 0
) -> Params[np.ndarray]:
    """Constants refitted to `count` resampled tables, leaves float64 [count].

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
    fitted = error(fit.law.params, cells.n, cells.t)
    # Residuals of equal variance: as they are, by standard error, or of the logarithm.
    is_log = fit.loss == "huber"
    spread = fitted if is_log else 1 / np.sqrt(cells.weight)
    residual = np.log(cells.y / fitted) if is_log else (cells.y - fitted) / spread
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


def _task_shifts(table: ScoreTable, count: int, rng: np.random.Generator) -> Float[np.ndarray, "draws k"]:
    """How the mean error changes when tasks are drawn anew, `count` times."""
    if len(table.tasks) < 2:
        raise UserError(f"{table.name!r} has no tasks to resample; resample residuals or cells instead.")
    observed = np.isfinite(table.score)
    errors = np.stack([1 - scores[observed] for scores in table.tasks.values()])
    for name, row in zip(table.tasks, errors, strict=True):
        if not np.isfinite(row).all():
            raise UserError(f"Task {name!r} lacks a score that the table has, so tasks cannot be resampled.")
    draws = rng.integers(len(errors), size=(count, len(errors)))
    return np.asarray(errors[draws].mean(axis=1) - errors.mean(axis=0))


def percentile_intervals(samples: Params[np.ndarray], level: float = 0.95) -> dict[str, Interval]:
    """Percentile interval of each constant."""
    tail = 50 * (1 - level)
    ends = [np.percentile(leaf, [tail, 100 - tail]) for leaf in samples]
    return {name: (float(e[0]), float(e[1])) for name, e in zip(PARAMETERS, ends, strict=True)}


def best_count(table: ScoreTable, fit: Fit, samples: Params[np.ndarray]) -> Interval:
    """95 % interval of the V that is best at a fixed cost, within the table's range."""
    laws = (dataclasses.replace(fit.law, params=Params(*p)) for p in zip(*samples, strict=True))
    low, high = table.count_range
    ends = np.percentile([law.optimal_visual_tokens(low, high) for law in laws], [2.5, 97.5])
    return float(ends[0]), float(ends[1])
