"""What a further cell is worth: how far it lowers a decision's expected regret, how much it tells of the constants.

Regret, by preposterior analysis on the bootstrap laws: each law in turn is the truth and gives the cell a score with
noise; all others are weighted by how likely that score is under them; the decision is the choice of the least weighted
error, and its regret is counted under the truth. Regrets are means over truths and draws. The truth has no weight of
its own, since it would recognise itself. All cells see the same draws, so that their differences are no accident.

Information, D-optimal: log(1 + g' F^-1 g / sigma^2), which is by how much the cell raises the log determinant of the
information F = sum of g g' / sigma^2 over the cells so far; g are the derivatives of the law's error there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from scaling.planner import choose


class Decision(NamedTuple):
    """What is to be chosen: errors of every choice by every law, its costs, and what each budget allows."""

    errors: Float[np.ndarray, "laws choices"]
    costs: Float[np.ndarray, " choices"]
    affordable: Bool[np.ndarray, "budgets choices"]


class Step(NamedTuple):
    """One cell of a greedy sequence, and what the others would have been worth in its place.

    gains are in the criterion's unit, errors their standard errors over truths; NaN where a cell was taken before.
    """

    cell: int
    gains: Float[np.ndarray, " cells"]
    errors: Float[np.ndarray, " cells"]


def expected_regrets(
    decision: Decision, log_weight: Float[np.ndarray, "laws draws laws"]
) -> Float[np.ndarray, " laws"]:
    """Regret of each law as the truth, over draws and budgets; `log_weight` [truth, draw, law] are its data."""
    count, draws, _ = log_weight.shape
    others = np.where(np.eye(count, dtype=bool)[:, None], -np.inf, log_weight)
    weight = np.exp(others - others.max(axis=-1, keepdims=True))
    weight /= weight.sum(axis=-1, keepdims=True)
    mean = (weight.reshape(-1, count) @ decision.errors).reshape(count, draws, -1)
    regrets = np.zeros((count, draws))
    for affordable in decision.affordable:
        chosen = choose(mean, decision.costs, affordable)
        least = np.where(affordable, decision.errors, np.inf).min(axis=1)
        regrets += np.take_along_axis(decision.errors, chosen, axis=1) - least[:, None]
    return regrets.mean(axis=1) / len(decision.affordable)


def log_likelihoods(
    cell: Float[np.ndarray, " laws"], noise: Float[np.ndarray, "laws draws"], sigma: float
) -> Float[np.ndarray, "laws draws laws"]:
    """Of each law, for the score that each truth gives a cell; `cell` is the cell's error by each law."""
    score = cell[:, None] + sigma * noise
    return -0.5 * ((score[..., None] - cell) / sigma) ** 2


def by_regret(
    decision: Decision,
    cells: Float[np.ndarray, "laws cells"],
    prices: Float[np.ndarray, " cells"],
    sigma: float,
    count: int,
    draws: int,
    rng: np.random.Generator,
) -> tuple[float, list[Step]]:
    """The expected regret now, and greedily the cells that lower it most per price; fewer than `count` where no
    further one would."""
    laws, width = cells.shape
    known = np.zeros((laws, draws, laws))
    before = expected_regrets(decision, known)
    now, steps, left = float(before.mean()), list[Step](), list(range(width))
    for _ in range(min(count, width)):
        noise = rng.standard_normal((laws, draws))
        gains, errors, after = np.full(width, np.nan), np.full(width, np.nan), {}
        for k in left:
            after[k] = expected_regrets(decision, known + log_likelihoods(cells[:, k], noise, sigma))
            gain = before - after[k]
            gains[k], errors[k] = gain.mean(), gain.std(ddof=1) / np.sqrt(laws)
        best = int(np.nanargmax(gains / prices))
        if not gains[best] > 0:
            break
        known += log_likelihoods(cells[:, best], noise, sigma)
        before = after[best]
        left.remove(best)
        steps.append(Step(best, gains, errors))
    return now, steps


def information(
    gradients: Float[np.ndarray, "cells p"], sigmas: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, "p p"]:
    """F of measured cells."""
    scaled = gradients / sigmas[:, None]
    return scaled.T @ scaled


def information_gains(
    known: Float[np.ndarray, "p p"], gradients: Float[np.ndarray, "cells p"], sigma: float
) -> Float[np.ndarray, " cells"]:
    """log(1 + g' F^-1 g / sigma^2) of each cell."""
    # In units of F's own diagonal; what F says nothing of, as an exponent of a law that is level, stays finite.
    scale = np.sqrt(np.where(np.diag(known) > 0, np.diag(known), 1.0))
    ridge = known / scale / scale[:, None] + 1e-12 * np.eye(len(known))
    g = gradients / scale
    return np.log1p(np.einsum("ki,ik->k", g, np.linalg.solve(ridge, g.T)) / sigma**2)


def by_information(
    known: Float[np.ndarray, "p p"],
    gradients: Float[np.ndarray, "cells p"],
    prices: Float[np.ndarray, " cells"],
    sigma: float,
    count: int,
) -> list[Step]:
    """Greedily the cells that tell most per price."""
    steps, taken, width = list[Step](), np.zeros(len(prices), bool), len(prices)
    for _ in range(min(count, width)):
        gains = np.where(taken, np.nan, information_gains(known, gradients, sigma))
        best = int(np.nanargmax(gains / prices))
        known = known + np.outer(gradients[best], gradients[best]) / sigma**2
        taken[best] = True
        steps.append(Step(best, gains, np.full(width, np.nan)))
    return steps


def thinned(leaves: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """At most so many of the laws, evenly out of all."""
    step = max(1, -(-len(leaves[0]) // most))
    return [leaf[::step] for leaf in leaves]
