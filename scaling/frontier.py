"""Error against compute: what each choice of LLM size and visual tokens costs and gives."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real

from quecc_jax.errors import UserError
from scaling.law import Axis, Law, Numbers
from scaling.table import ScoreTable

Cost = Callable[[Numbers, Numbers], np.ndarray]
"""FLOPs per query from sizes in billions and visual tokens, broadcast against each other."""


class Choices(NamedTuple):
    """Choices of (N, V): billions, tokens, FLOPs per query, error in 0..1."""

    params_b: Float[np.ndarray, " choices"]
    visual_tokens: Float[np.ndarray, " choices"]
    flops: Float[np.ndarray, " choices"]
    error: Float[np.ndarray, " choices"]

    def at(self, index: np.ndarray) -> "Choices":
        """The choices that indices or a mask pick."""
        return Choices(*(field[index] for field in self))


class Choice(NamedTuple):
    """One choice of (N, V), in the units of Choices."""

    params_b: float
    visual_tokens: float
    flops: float
    error: float


def published_cost(query_tokens: float) -> Cost:
    """The paper's cost of one query: 2 N (Q + V) FLOPs, N in parameters."""

    def cost(params_b: Numbers, visual_tokens: Numbers) -> Float[np.ndarray, "..."]:
        return np.asarray(2e9 * params_b * (query_tokens + visual_tokens))

    return cost


def measured_cost(
    params_b: Axis, visual_tokens: Axis, flops: Sequence[Sequence[float]] | Real[np.ndarray, "N V"]
) -> Cost:
    """A cost from counted FLOPs per query, defined on exactly those sizes and counts."""
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


def law_choices(law: Law, params_b: Axis, visual_tokens: Axis, cost: Cost) -> Choices:
    """Every pair of the given sizes and counts, with the error that the law predicts."""
    n, v = pairs(params_b, visual_tokens)
    return Choices(n, v, cost(n, v), law.error(n, v))


def pairs(
    params_b: Axis, visual_tokens: Axis
) -> tuple[Float[np.ndarray, " choices"], Float[np.ndarray, " choices"]]:
    """Sizes and token counts of every pair, float64."""
    axes = (np.asarray(axis, np.float64) for axis in (params_b, visual_tokens))
    n, v = (grid.ravel() for grid in np.meshgrid(*axes, indexing="ij"))
    return n, v


def measured_choices(table: ScoreTable, cost: Cost) -> Choices:
    """Every observed cell, with its measured error."""
    i, j = np.nonzero(np.isfinite(table.score))
    n, v = table.params_b[i], table.visual_tokens[j]
    return Choices(n, v, cost(n, v), table.error[i, j])


def pareto(choices: Choices) -> Choices:
    """The choices that no cheaper or equally cheap one matches, by rising cost and falling error."""
    kept = choices.at(pareto_mask(choices.flops, choices.error))
    return kept.at(np.argsort(kept.flops))


def pareto_mask(
    cost: Float[np.ndarray, " choices"],
    error: Float[np.ndarray, " choices"],
    allowed: Bool[np.ndarray, " choices"] | None = None,
) -> Bool[np.ndarray, " choices"]:
    """The choices that no cheaper or equally cheap allowed one matches; one of equal twins."""
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
