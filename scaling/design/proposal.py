"""Which cells (N, V) of a grid to train next, by a fit and the decision that it shall serve.

A cell's training is taken to cost 6 N (Q + V) FLOPs for each row that it sees, all cells the same number of rows; the
vision tower, which costs each row alike, is left out.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from quecc_jax.errors import UserError
from scaling.design.worth import Decision, Step, by_information, by_regret, information, thinned
from scaling.fit import cells_of
from scaling.frontier import pairs
from scaling.law import PARAMETERS, Axis, Params, error, gradient
from scaling.limits import LEAST, MOST_TOKENS, refuse_cells
from scaling.planner import Options, Plan, make_plan, published_options, sampled_errors
from scaling.saved_fit import SavedFit
from scaling.table import LARGEST_B

LAWS = 300
"""Bootstrap laws that are weighed against each other, at most; each is the truth once."""
FEWEST_LAWS = 20
LEAST_SIGMA = 1e-6
"""Noise of scores that a law fits exactly, which no real ones do."""


@dataclasses.dataclass(frozen=True)
class Noise:
    """The standard error that a new score is expected to have, in error, and where it comes from, in words."""

    sigma: float
    source: str


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Cells in the order in which to train them, by either criterion.

    fit has the law at the Q of the decision. prices are training FLOPs per row. regret_now is the expected regret of
    deciding without further scores, in error. plans are what would be bought now, one for each budget. is_outside says
    which cells the law was not fitted on.
    """

    fit: SavedFit
    noise: Noise
    params_b: Float[np.ndarray, " cells"]
    visual_tokens: Float[np.ndarray, " cells"]
    prices: Float[np.ndarray, " cells"]
    is_outside: Bool[np.ndarray, " cells"]
    plans: tuple[Plan, ...]
    laws: int
    draws: int
    regret_now: float
    by_regret: tuple[Step, ...]
    by_information: tuple[Step, ...]


def training_flops(params_b: Axis, visual_tokens: Axis, text: float) -> Float[np.ndarray, " cells"]:
    """6 N (Q + V) for each cell: forward and backward of one row through the decoder."""
    return 6e9 * np.asarray(params_b, np.float64) * (text + np.asarray(visual_tokens, np.float64))


def noise_of(fit: SavedFit) -> Noise:
    """Of the fit's own scores: their standard errors, widened where the scores lie farther from the law than these
    say; else the scatter around the law, sqrt(sse / (k - p)).

    Raises:
      UserError: the fit has too few scores, or does not hold them.
    """
    if fit.table is None:
        raise UserError(f"The fit of {fit.name!r} does not hold its scores; fit anew.")
    cells, free = cells_of(fit.table, fit.law), len(PARAMETERS) - len(fit.fixed)
    if len(cells.y) < free + 1:
        raise UserError(
            f"The grid of {fit.name!r} has {len(cells.y)} scores, and a proposal needs at least {free + 1}, one more "
            "than the law has constants; train some cells first."
        )
    residual = error(fit.law.params, cells.n, cells.t) - cells.y
    dof = len(cells.y) - free
    observed = np.isfinite(fit.table.score)
    stderr = None if fit.table.stderr is None else fit.table.stderr[observed]
    if stderr is None or not np.all(stderr > 0):
        return Noise(max(float(np.sqrt(np.sum(residual**2) / dof)), LEAST_SIGMA), "scatter around the law")
    said = float(np.sqrt(np.mean(stderr**2)))
    wider = float(np.sqrt(np.sum((residual / stderr) ** 2) / dof))
    if wider <= 1:
        return Noise(max(said, LEAST_SIGMA), "standard errors of the scores")
    return Noise(
        said * wider, f"standard errors of the scores, times {wider:.2f} for their distance from the law"
    )


def propose(
    fit: SavedFit,
    params_b: Sequence[float],
    visual_tokens: Sequence[float],
    budgets: Sequence[float],
    text: float | None = None,
    count: int = 3,
    draws: int = 8,
    again: bool = False,
    seed: int = 0,
    among: Options | None = None,
) -> Proposal:
    """Proposes `count` of the pairs of sizes (billions) and token counts; the decision is among the same pairs by the
    published cost, or `among` others.

    Args:
      budgets: FLOPs per query, each a decision of its own; they count alike.
      text: tokens of the queries that are decided for, by default the fit's; cells are trained with the fit's.
      draws: noisy scores of each cell under each law.
      again: cells that have a score may be trained once more.

    Raises:
      UserError: the fit has too few scores or laws, a budget buys nothing, or no cell is left.
    """
    noise = noise_of(fit)
    if fit.samples is None or len(fit.samples.A) < FEWEST_LAWS:
        found = 0 if fit.samples is None else len(fit.samples.A)
        raise UserError(
            f"The fit of {fit.name!r} holds {found} bootstrap laws, and a proposal needs at least {FEWEST_LAWS} to "
            "weigh against each other; fit anew with more --refits."
        )
    _refuse_senseless(params_b, visual_tokens)
    law = fit.law
    asked = law if text is None else dataclasses.replace(law, query_tokens=text)
    options = among or published_options(params_b, visual_tokens, asked.query_tokens)
    plans = tuple(make_plan(asked, fit.samples, options, budget, "flops") for budget in budgets)
    n, v = pairs(np.sort(params_b), np.sort(visual_tokens))
    new = np.ones(len(n), bool) if again else ~_measured(fit, n, v)
    if not new.any():
        raise UserError(
            "Every pair of these sizes and visual tokens has a score already; name others with --llms or "
            "--visual-tokens, or measure some once more with --again."
        )
    n, v = n[new], v[new]
    refuse_cells(len(n), count * draws * len(budgets))
    samples = Params(*thinned(fit.samples, LAWS))
    columns = Params(*(leaf[:, None] for leaf in samples))
    affordable = np.stack([options.cost <= budget * (1 + 1e-12) for budget in budgets])
    decision = Decision(sampled_errors(asked, samples, options), options.cost, affordable)
    prices, rng = training_flops(n, v, law.query_tokens), np.random.default_rng(seed)
    at_cells = error(columns, n[None], law.total(v)[None])
    now, steps = by_regret(decision, at_cells, prices, noise.sigma, count, draws, rng)
    outside = np.logical_or(*fit.reach.lacks(n, law.total(v)))
    told = by_information(*_gradients(fit, n, v, noise), prices, noise.sigma, count)
    return Proposal(
        fit._replace(law=asked),
        noise,
        n,
        v,
        prices,
        outside,
        plans,
        len(samples.A),
        draws,
        now,
        tuple(steps),
        tuple(told),
    )


def _gradients(
    fit: SavedFit, n: np.ndarray, v: np.ndarray, noise: Noise
) -> tuple[Float[np.ndarray, "p p"], Float[np.ndarray, "cells p"]]:
    """The information of the measured cells, and the derivatives at others, by the constants that were not held."""
    assert fit.table is not None
    free = [name not in fit.fixed for name in PARAMETERS]
    cells = cells_of(fit.table, fit.law)
    known = gradient(fit.law.params, cells.n, cells.t)[:, free]
    return (
        information(known, np.full(len(cells.y), noise.sigma)),
        gradient(fit.law.params, n, fit.law.total(v))[:, free],
    )


def _measured(fit: SavedFit, n: np.ndarray, v: np.ndarray) -> Bool[np.ndarray, " cells"]:
    """Which pairs have a score; sizes as people write them are rounded."""
    assert fit.table is not None
    i, j = np.nonzero(np.isfinite(fit.table.score))
    sizes, counts = fit.table.params_b[i], fit.table.visual_tokens[j]
    near = [np.isclose(a[:, None], b, rtol=1e-9, atol=0) for a, b in ((n, sizes), (v, counts))]
    return np.asarray(np.any(near[0] & near[1], axis=1))


def _refuse_senseless(params_b: Sequence[float], visual_tokens: Sequence[float]) -> None:
    for size in params_b:
        if not LEAST <= size <= LARGEST_B:
            raise UserError(
                f"A candidate of {size:g}B is no size in billions of parameters; give {LEAST:g} to {LARGEST_B:g}."
            )
    for tokens in visual_tokens:
        if not LEAST <= tokens <= MOST_TOKENS:
            raise UserError(
                f"A candidate of {tokens:g} visual tokens is none; give {LEAST:g} to {MOST_TOKENS:g}."
            )
