"""Error against compute: what each choice of LLM size and visual tokens costs and gives."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from quecc_jax.errors import UserError
from scaling.law import Law
from scaling.table import ScoreTable

Cost = Callable[[Any, Any], np.ndarray]
"""FLOPs per query from sizes in billions and visual tokens, broadcast against each other."""


class Choices(NamedTuple):
    """Choices of (N, V), all fields [K]: billions, tokens, FLOPs per query, error in 0..1."""

    params_b: np.ndarray
    visual_tokens: np.ndarray
    flops: np.ndarray
    error: np.ndarray

    def at(self, index: Any) -> "Choices":
        """The choices that an index, slice or mask picks."""
        return Choices(*(field[index] for field in self))


class Choice(NamedTuple):
    """One choice of (N, V), in the units of Choices."""

    params_b: float
    visual_tokens: float
    flops: float
    error: float


def published_cost(query_tokens: float) -> Cost:
    """The paper's cost of one query: 2 N (Q + V) FLOPs, N in parameters."""

    def cost(params_b: Any, visual_tokens: Any) -> np.ndarray:
        return 2e9 * np.asarray(params_b, np.float64) * (query_tokens + np.asarray(visual_tokens, np.float64))

    return cost


def measured_cost(params_b: Any, visual_tokens: Any, flops: Any) -> Cost:
    """A cost from counted FLOPs per query [n, m], defined on exactly those sizes and counts."""
    counted = {
        (float(n), float(v)): float(flops[i][j])
        for i, n in enumerate(params_b)
        for j, v in enumerate(visual_tokens)
    }

    def look_up(n: float, v: float) -> float:
        if (n, v) not in counted:
            raise UserError(f"No FLOPs were counted for {n:g}B with {v:g} visual tokens.")
        return counted[n, v]

    return np.vectorize(look_up, otypes=[np.float64])


def law_choices(law: Law, params_b: Any, visual_tokens: Any, cost: Cost) -> Choices:
    """Every pair of the given sizes and counts, with the error that the law predicts."""
    n, v = (a.ravel() for a in np.meshgrid(np.float64(params_b), np.float64(visual_tokens), indexing="ij"))
    return Choices(n, v, cost(n, v), law.error(n, v))


def measured_choices(table: ScoreTable, cost: Cost) -> Choices:
    """Every observed cell, with its measured error."""
    i, j = np.nonzero(np.isfinite(table.score))
    n, v = table.params_b[i], table.visual_tokens[j]
    return Choices(n, v, cost(n, v), table.error[i, j])


def pareto(choices: Choices) -> Choices:
    """The choices that no cheaper or equally cheap one matches, by rising cost and falling error."""
    kept = choices.at(pareto_mask(choices.flops, choices.error))
    return kept.at(np.argsort(kept.flops))


def pareto_mask(cost: np.ndarray, error: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """bool [K], choices that no cheaper or equally cheap allowed one matches; one of equal twins."""
    error = error if allowed is None else np.where(allowed, error, np.inf)
    order = np.lexsort((error, cost))
    ranked = error[order]
    before = np.minimum.accumulate(np.concatenate([[np.inf], ranked[:-1]]))
    mask = np.zeros(len(cost), bool)
    mask[order[ranked < before]] = True
    return mask


def recommend(choices: Choices, budget_flops: float) -> Choice:
    """The least error that `budget_flops` per query buys; UserError if it buys nothing."""
    affordable = pareto(choices.at(choices.flops <= budget_flops * (1 + 1e-12)))
    if len(affordable.flops) == 0:
        raise UserError(
            f"A budget of {budget_flops:.3g} FLOPs per query buys no choice; "
            f"the cheapest costs {choices.flops.min():.3g}."
        )
    return Choice(*(float(field[-1]) for field in affordable))


def best_split(law: Law, budget_flops: float, v_min: float, v_max: float, points: int = 20001) -> Choice:
    """The best V on a fine grid when N may take any value that spends the whole budget.

    Uses the published cost. Independent of the closed form of `Law.optimal_visual_tokens`.
    """
    v = np.geomspace(v_min, v_max, points)
    n = budget_flops / (2e9 * (law.query_tokens + v))
    predicted = law.error(n, v)
    k = int(np.argmin(predicted))
    return Choice(float(n[k]), float(v[k]), budget_flops, float(predicted[k]))
