"""Which LLM and how many visual tokens, for a budget: the best choice, how sure it is, what others lose.

The law predicts the error of every choice, the cost model its price; both are exact sums over a list,
so nothing here searches. The bootstrap laws of the fit vote on the choice, and spread its prediction.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from quecc_jax.errors import UserError
from scaling import cost
from scaling.cost import Lengths, Llm, Setup
from scaling.formatting import PER, Kind, amount
from scaling.frontier import pairs, pareto_mask, published_cost
from scaling.law import Axis, Law, Params, error

Interval = tuple[float, float]
UNITS: dict[Kind, str] = {
    "flops": "FLOPs per query",
    "seconds": "seconds per batch",
    "usd": "dollars per million queries",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Every choice of (N, V), by rising N and then V.

    flops and seconds hold one array for each part; seconds is empty without a machine, memory and fits
    are None under the published cost, which knows no bytes. Where an engine was measured, cost and seconds
    are its own, and what the machine's peaks would make of them stands beside them.
    """

    params_b: Float[np.ndarray, " choices"]
    visual_tokens: Float[np.ndarray, " choices"]
    llms: tuple[str, ...]
    cost: Float[np.ndarray, " choices"]
    flops: dict[str, np.ndarray]
    seconds: dict[str, np.ndarray]
    memory: Float[np.ndarray, " choices"] | None = None
    fits: Bool[np.ndarray, " choices"] | None = None
    cost_at_peaks: Float[np.ndarray, " choices"] | None = None
    """None where no engine was measured."""
    seconds_at_peaks: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Of each part; empty where no engine was measured."""

    @property
    def allowed(self) -> Bool[np.ndarray, " choices"]:
        """Choices that fit the machine's memory."""
        return np.ones(len(self.cost), bool) if self.fits is None else self.fits


class Neighbour(NamedTuple):
    """A choice one step from the recommended one.

    option indexes the options. regret is how much more error it has, negative where it has less and
    costs more than the budget. over_budget is its cost over the budget, less 1.
    """

    option: int
    regret: float
    regret_interval: Interval | None
    over_budget: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a budget should buy.

    best indexes the options. error is predicted, in 0..1, with its 95 % intervals over the bootstrap laws.
    share is how often these laws choose each option. frontier indexes the options that no cheaper one
    matches, by rising cost; frontier_share is how often the bootstrap laws put
    each option on theirs. Intervals and shares are None without samples.
    """

    options: Options
    budget: float
    best: int
    error: Float[np.ndarray, " choices"]
    error_interval: Float[np.ndarray, "choices 2"] | None
    share: Float[np.ndarray, " choices"] | None
    regret: Float[np.ndarray, " choices"]
    """Error above the recommended choice's."""
    regret_interval: Float[np.ndarray, "choices 2"] | None
    """Over the bootstrap laws."""
    frontier: Int[np.ndarray, " frontier"]
    frontier_share: Float[np.ndarray, " choices"] | None
    neighbours: tuple[Neighbour, ...]
    worst_regret: float | None
    """95 of 100 bootstrap laws lose less than this error by the recommended choice."""


def published_options(params_b: Axis, visual_tokens: Axis, text: float) -> Options:
    """All pairs under the paper's cost, 2 N (Q + V) FLOPs of prefill and nothing else."""
    n, v = pairs(np.sort(params_b), np.sort(visual_tokens))
    prefill = published_cost(text)(n, v)
    return Options(n, v, tuple(f"{x:g}B" for x in n), prefill, {"prefill": prefill}, {})


def counted_options(
    llms: Sequence[Llm], visual_tokens: Sequence[float], lengths: Lengths, setup: Setup
) -> Options:
    """All pairs, every part counted from the real shapes.

    Raises:
      UserError: the compressor cannot make one of the token counts, or a part was not measured.
    """
    llms = sorted(llms, key=lambda llm: llm.params_b)
    pairs = [(llm, v) for llm in llms for v in sorted(visual_tokens)]
    configs = [cost.model_config(*pair, setup.query, setup.compressor) for pair in pairs]
    works = [cost.work_of_query(config, lengths, setup.weights) for config in configs]

    def priced(run: Setup) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Cost of each choice, and seconds of each part where there is a machine."""
        each = [(work, run, lengths.text + c.visual_tokens) for work, c in zip(works, configs, strict=True)]
        prices = np.array([cost.query_cost(*one) for one in each], np.float64)
        if run.machine is None:
            return prices, {}
        times = [cost.seconds_of_parts(*one) for one in each]
        return prices, {part: np.array([one[part] for one in times]) for part in cost.PARTS}

    prices, seconds = priced(setup)
    at_peaks = None if setup.measured is None else priced(dataclasses.replace(setup, measured=None))
    machine, memory = setup.machine, None
    if machine is not None:
        memory = np.array([cost.memory_of(config, lengths, setup.batch, setup.weights) for config in configs])
    return Options(
        params_b=np.array([llm.params_b for llm, _ in pairs], np.float64),
        visual_tokens=np.array([v for _, v in pairs], np.float64),
        llms=tuple(llm.name for llm, _ in pairs),
        cost=prices,
        flops={part: np.array([work[part].flops for work in works]) for part in cost.PARTS},
        seconds=seconds,
        memory=memory,
        fits=None if memory is None or machine is None else memory <= machine.memory,
        cost_at_peaks=None if at_peaks is None else at_peaks[0],
        seconds_at_peaks={} if at_peaks is None else at_peaks[1],
    )


def make_plan(
    law: Law, samples: Params[np.ndarray] | None, options: Options, budget: float, unit: Kind
) -> Plan:
    """The recommendation for one budget, in the unit of the options' cost.

    Raises:
      UserError: no choice fits the machine's memory, or the budget buys none.
    """
    allowed = options.allowed
    if not allowed.any():
        assert options.memory is not None
        raise UserError(
            f"No choice fits the machine's memory; the smallest needs {options.memory.min() / 2**30:.3g} GiB."
        )
    affordable = allowed & (options.cost <= budget * (1 + 1e-12))
    if not affordable.any():
        cheapest = int(np.argmin(np.where(allowed, options.cost, np.inf)))
        raise UserError(
            f"A budget of {amount(budget, unit)} {PER[unit]} buys no choice; the cheapest, "
            f"{options.llms[cheapest]} with V = {options.visual_tokens[cheapest]:g}, costs "
            f"{amount(options.cost[cheapest], unit)}."
        )
    predicted = law.error(options.params_b, options.visual_tokens)
    best = int(choose(predicted, options.cost, affordable))
    on_frontier = pareto_mask(options.cost, predicted, allowed)
    frontier = np.flatnonzero(on_frontier)
    frontier = frontier[np.argsort(options.cost[frontier])]
    regret = predicted - predicted[best]
    error_interval = share = regret_interval = frontier_share = worst = None
    if samples is not None:
        drawn = sampled_errors(law, samples, options)
        error_interval = np.percentile(drawn, [2.5, 97.5], axis=0).T
        chosen = choose(drawn, options.cost, affordable)
        share = np.bincount(chosen, minlength=len(predicted)) / len(drawn)
        regret_interval = np.percentile(drawn - drawn[:, [best]], [2.5, 97.5], axis=0).T
        least = np.where(affordable, drawn, np.inf).min(axis=1)
        worst = float(np.percentile(drawn[:, best] - least, 95))
        frontier_share = np.mean([pareto_mask(options.cost, row, allowed) for row in drawn], axis=0)
    neighbours = tuple(
        Neighbour(
            int(k),
            float(regret[k]),
            None if regret_interval is None else (float(regret_interval[k, 0]), float(regret_interval[k, 1])),
            float(options.cost[k] / budget - 1),
        )
        for k in _next_to(options, best)
    )
    return Plan(
        options,
        budget,
        best,
        predicted,
        error_interval,
        share,
        regret,
        regret_interval,
        frontier,
        frontier_share,
        neighbours,
        worst,
    )


def choice_of(law: Law, options: Options, budget: float) -> int:
    """Index of what another law would choose for the same budget, which must buy something."""
    affordable = options.allowed & (options.cost <= budget * (1 + 1e-12))
    return int(choose(law.error(options.params_b, options.visual_tokens), options.cost, affordable))


def sampled_errors(
    law: Law, samples: Params[np.ndarray], options: Options
) -> Float[np.ndarray, "refits choices"]:
    """Error of every option by every bootstrap law."""
    columns = Params(*(leaf[:, None] for leaf in samples))
    return error(columns, options.params_b[None], law.total(options.visual_tokens)[None])


def choose(
    errors: Float[np.ndarray, "*refits choices"],
    costs: Float[np.ndarray, " choices"],
    affordable: Bool[np.ndarray, " choices"],
) -> Int[np.ndarray, "*refits"]:
    """Index of the least affordable error along the last axis; the cheaper of equals."""
    order = np.lexsort((np.arange(len(costs)), costs))
    ranked = np.where(affordable, errors, np.inf)[..., order]
    return np.asarray(order[np.argmin(ranked, axis=-1)])


def _next_to(options: Options, best: int) -> list[int]:
    """Options one size or one token count away that fit the memory, by rising N, then V."""
    sizes, counts = np.unique(options.params_b), np.unique(options.visual_tokens)
    row = np.searchsorted(sizes, options.params_b)
    column = np.searchsorted(counts, options.visual_tokens)
    steps = abs(row - row[best]) + abs(column - column[best])
    same_size = (steps == 0) & (np.arange(len(steps)) != best)
    return [int(k) for k in np.flatnonzero(((steps == 1) | same_size) & options.allowed)]


def costs_over_text(
    sizes: Sequence[Llm],
    visual_tokens: Sequence[float],
    lengths: Lengths,
    setup: Setup,
    text: Float[np.ndarray, " Q"],
) -> Float[np.ndarray, "N V Q"]:
    """Cost of every pair of size and token count for every text length; infinite where it does not fit the
    machine's memory.

    The bare question is as long as the text where `lengths` says so; else it keeps its length, as far as
    the text is that long.
    """
    question = text if lengths.question == lengths.text else np.minimum(lengths.question, text)
    at = Lengths(text, lengths.answer, question)

    def row(llm: Llm, count: float) -> Float[np.ndarray, " Q"]:
        config = cost.model_config(llm, count, setup.query, setup.compressor)
        work = cost.work_of_query(config, at, setup.weights)
        price = np.broadcast_to(cost.query_cost(work, setup, text + config.visual_tokens), text.shape)
        if setup.machine is None:
            return price
        fits = cost.memory_of(config, at, setup.batch, setup.weights) <= setup.machine.memory
        return np.where(fits, price, np.inf)

    return np.array([[row(llm, count) for count in visual_tokens] for llm in sizes])
