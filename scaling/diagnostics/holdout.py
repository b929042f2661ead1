"""What the law says about scores it has not seen, and what each score does to the law.

All refits start at the fitted law and run as one batch; a cell is left out by giving it weight 0.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import stdtrit

from quecc_jax.errors import UserError
from scaling.fit import Fit, cells_of, solve_like
from scaling.intervals import error_intervals, problem_of
from scaling.law import Params, error
from scaling.table import ScoreTable, checked


class HoldOut(NamedTuple):
    """The law fitted without one row or column, judged on it. Errors are predicted minus measured."""

    axis: str
    """`params_b` or `visual_tokens`."""
    value: float
    """The size in billions, or the visual tokens, left out."""
    is_extrapolation: bool
    """Whether it is an end of its axis, so that the rest lies on one side."""
    n_points: int
    rmse: float
    bias: float
    worst: float
    """The error of the largest magnitude, with its sign."""
    worst_share: float
    """The largest magnitude as a share of the measured error."""
    params: Params[float]


class Influence(NamedTuple):
    """What changes when one cell is left out."""

    params_b: float
    visual_tokens: float
    params: Params[float]
    """The constants without it."""
    best_count: float
    """V that is best at a fixed cost without it, within the table's range."""
    cook: float
    """Cook's distance: the squared shift of all fitted errors per parameter, over the variance of the
    residuals. Above 1, one score moves the law as far as its own uncertainty."""


class Prediction(NamedTuple):
    """Scores predicted for one size in billions, each with its interval."""

    params_b: float
    visual_tokens: Float[np.ndarray, " V"]
    score: Float[np.ndarray, " V"]
    low: Float[np.ndarray, " V"]
    high: Float[np.ndarray, " V"]


def hold_out(table: ScoreTable, fit: Fit) -> list[HoldOut]:
    """Leaves out every size and every visual token count in turn.

    A row or column is skipped where the rest could not determine the law.
    """
    i, j = np.nonzero(np.isfinite(table.score))
    sets: list[tuple[str, float, bool, np.ndarray]] = []
    for axis, values, at in (("params_b", table.params_b, i), ("visual_tokens", table.visual_tokens, j)):
        seen = np.unique(at)
        for k in seen:
            kept = at != k
            if kept.sum() >= fit.n_parameters and _determines(table, i[kept], j[kept]):
                sets.append((axis, float(values[k]), bool(k in (seen[0], seen[-1])), kept))
    if not sets:
        return []
    refits = refit(table, fit, np.stack([kept for *_, kept in sets]))
    cells = cells_of(table, fit.law)
    found = []
    for k, (axis, value, is_end, kept) in enumerate(sets):
        params = Params(*(float(leaf[k]) for leaf in refits))
        miss = (error(params, cells.n, cells.t) - cells.y)[~kept]
        worst = float(miss[np.argmax(np.abs(miss))])
        share = float(np.max(np.abs(miss) / np.maximum(cells.y[~kept], 1e-12)))
        rmse, bias = float(np.sqrt(np.mean(miss**2))), float(miss.mean())
        found.append(HoldOut(axis, value, is_end, len(miss), rmse, bias, worst, share, params))
    return found


def influence(table: ScoreTable, fit: Fit) -> list[Influence]:
    """Leaves out every cell in turn; the most influential first.

    Empty where fewer cells than parameters would remain, or no residual is left to measure by.
    """
    dof = fit.n_points - fit.n_parameters
    if dof < 1 or fit.sse <= 0:
        return []
    i, j = np.nonzero(np.isfinite(table.score))
    refits = refit(table, fit, ~np.eye(len(i), dtype=bool))
    cells = cells_of(table, fit.law)
    here = error(fit.law.params, cells.n, cells.t)
    found = []
    for k in range(len(i)):
        params = Params(*(float(leaf[k]) for leaf in refits))
        law = dataclasses.replace(fit.law, params=params)
        shift = float(np.sum((error(params, cells.n, cells.t) - here) ** 2))
        cook = shift / fit.n_parameters / (fit.sse / dof)
        size, count = float(table.params_b[i[k]]), float(table.visual_tokens[j[k]])
        found.append(Influence(size, count, params, law.optimal_visual_tokens(*table.count_range), cook))
    return sorted(found, key=lambda cell: -cell.cook)


def refit(table: ScoreTable, fit: Fit, kept: Bool[np.ndarray, "refits k"]) -> Params[np.ndarray]:
    """Constants fitted to subsets of the observed cells, leaves [refits]."""
    cells = cells_of(table, fit.law, fit.loss)
    return solve_like(fit, cells._replace(weight=kept * cells.weight)).params


def predict(
    table: ScoreTable,
    fit: Fit,
    samples: Params[np.ndarray] | None,
    params_b: float,
    level: float = 0.95,
    seed: int = 0,
) -> Prediction:
    """Scores of one size at the table's token counts, with the interval of a new measurement.

    The interval of the law's own error there (`intervals.error_intervals`) and the scatter of single
    scores around the law add in squares. Under a Huber loss, which has no likelihood, the law's spread
    is that of the resampled constants (`samples`, leaves [refits]) and scatter is drawn from the residuals.

    Raises:
      UserError: the size is not a positive number.
    """
    if not (np.isfinite(params_b) and params_b > 0):
        raise UserError(f"A size to predict must be a positive number of billions, not {params_b:g}.")
    v = table.visual_tokens
    predicted, dof = fit.law.error(params_b, v), fit.n_points - fit.n_parameters
    if fit.loss != "huber":
        sizes = np.full(len(v), float(params_b))
        ends = error_intervals(problem_of(table, fit), sizes, fit.law.total(v), level)[0]
        scatter = stdtrit(dof, (1 + level) / 2) * np.sqrt(fit.objective / dof)
        below, above = (np.hypot(ends[:, side] - predicted, scatter) for side in (0, 1))
        return Prediction(params_b, v, 1 - predicted, 1 - predicted - above, 1 - predicted + below)
    assert samples is not None
    batch = Params(*(leaf[:, None] for leaf in samples))
    spread = error(batch, params_b, fit.law.total(v)[None, :])
    residuals = fit.residuals[np.isfinite(fit.residuals)]
    widened = (residuals - residuals.mean()) * np.sqrt(fit.n_points / dof)
    spread = spread + np.random.default_rng(seed).choice(widened, spread.shape)
    tail = 50 * (1 - level)
    high, low = np.percentile(spread, [tail, 100 - tail], axis=0)
    return Prediction(params_b, v, 1 - predicted, 1 - low, 1 - high)


def _determines(table: ScoreTable, i: np.ndarray, j: np.ndarray) -> bool:
    score = np.full(table.score.shape, np.nan)
    score[i, j] = table.score[i, j]
    try:
        checked(dataclasses.replace(table, score=score))
    except UserError:
        return False
    return True
