"""A plan in words: its JSON record, and what page and terminal say beside their tables."""

import dataclasses
import itertools
from typing import NamedTuple

import numpy as np

from quecc_jax.config.compressors import reads_question
from quecc_jax.pages.numbers import size_name
from scaling.cost import PAPERS_COMPRESSOR, PARTS, Lengths, QueryConfig, Setup
from scaling.formatting import PER, Record, amount, ends, percent
from scaling.planner import UNITS, Plan, choice_of
from scaling.report.measured_notes import efficiency_record, measured_notes
from scaling.report.training import TrainingCost, training_costs
from scaling.saved_fit import SavedFit

PART_NAMES = {
    "tower": "vision tower",
    "query": "encoder of the question",
    "compressor": "compressor and projector",
    "prefill": "prefill",
    "decode": "decode",
}


class Question(NamedTuple):
    """What was asked: the law, the lengths, the unit and machine, and how cost is counted."""

    fit: SavedFit
    """Its law's query tokens are the plan's Q."""
    lengths: Lengths
    setup: Setup
    counted: bool

    @property
    def cost_model(self) -> str:
        """The cost model in one line, for every figure and table."""
        text, _, question = self.lengths
        if not self.counted:
            return f"published cost 2N(Q + V), Q = {text:g}"
        said = f"{self._counted}, Q = {text:g} text tokens"
        if not reads_question(self.setup.compressor):
            return said
        reads = "all" if question == text else f"{question:g}"
        return f"{said}, of which {self.encoder} reads {reads}"

    @property
    def cost_model_of_all(self) -> str:
        """The same where Q varies."""
        if not self.counted:
            return "published cost 2N(Q + V)"
        text, _, question = self.lengths
        if not reads_question(self.setup.compressor):
            return self._counted
        reads = "all Q" if question == text else f"up to {question:g}"
        return f"{self._counted}, {self.encoder} reads {reads} text tokens"

    @property
    def encoder(self) -> str:
        """What encodes the question."""
        return f"the question's encoder ({encoder_name(self.setup.query)})"

    @property
    def _counted(self) -> str:
        machine, said = self.setup.machine, f"counted cost of all parts, G = {self.lengths.answer} generated"
        if self.setup.compressor != PAPERS_COMPRESSOR:
            said += f", compressor {self.setup.compressor}"
        if machine is None:
            return said
        share = "" if machine.efficiency == 1 else f", {100 * machine.efficiency:g} % of its peaks"
        if self.setup.measured is not None:
            share = f" at its peaks; as measured on {self.setup.measured.chip.name}"
        figures = f"{machine.flops / 1e12:g} TFLOP/s, {machine.bandwidth / 1e9:g} GB/s{share}"
        return f"{said}, {machine.name} ({figures}), batch {self.setup.batch}, {self.setup.weights} weights"

    @property
    def as_measured(self) -> str:
        """Behind the name of what a query takes, where an engine was measured: its own time or dollars."""
        return "" if self.setup.measured is None or self.setup.kind == "flops" else ", as measured"

    @property
    def convention(self) -> str:
        """What T counts, in one line."""
        return self.fit.law.convention


def encoder_name(query: QueryConfig) -> str:
    """`early_exit 8`."""
    return f"{query.encoder} {query.layer}" if query.layer else query.encoder


def choice_name(plan: Plan, index: int) -> str:
    """`4B (qwen1.5-4b), V = 16`."""
    options = plan.options
    size, llm = size_name(options.params_b[index]), options.llms[index]
    name = size if llm in (size, f"{options.params_b[index]:g}B") else f"{size} ({llm})"
    return f"{name}, V = {options.visual_tokens[index]:g}"


def extrapolated(plan: Plan, asked: Question) -> list[tuple[str, ...]]:
    """What of each choice lies outside of what the law was fitted on: `params_b`, `visual_tokens`, both or nothing."""
    o, fit = plan.options, asked.fit
    lacking = fit.reach.lacks(o.params_b, fit.law.total(o.visual_tokens))
    names = "params_b", "visual_tokens"
    return [tuple(itertools.compress(names, each)) for each in zip(*lacking, strict=True)]


def marked(plan: Plan, asked: Question) -> list[tuple[str, str]]:
    """LLM and V of each choice for a table, with a word where they are extrapolated."""
    o = plan.options
    texts = zip(o.llms, (f"{v:g}" for v in o.visual_tokens), extrapolated(plan, asked), strict=True)
    word = " (extrapolated)"
    return [
        (llm + word * ("params_b" in outside), count + word * ("visual_tokens" in outside))
        for llm, count, outside in texts
    ]


def advice(plan: Plan, asked: Question) -> str:
    """The recommendation in two or three sentences."""
    k, kind = plan.best, asked.setup.kind
    said = (
        f"{amount(plan.budget, kind)} {PER[kind]} buys {choice_name(plan, k)}: predicted error "
        f"{percent(plan.error[k])}{_span(plan.error_interval, k)}, for {amount(plan.options.cost[k], kind)}"
    )
    if asked.as_measured and plan.options.cost_at_peaks is not None:
        said += f" as measured ({amount(plan.options.cost_at_peaks[k], kind)} at the chip's peaks)"
    said += "."
    if extrapolated(plan, asked)[k]:
        said += " It lies outside the grid that the law was fitted on: its error is extrapolated."
    if plan.share is None:
        return said + " The fit has no bootstrap samples, so there are no intervals."
    said += f" {100 * plan.share[k]:.0f} % of the bootstrap laws choose it"
    others = [j for j in np.argsort(-plan.share) if j != k and plan.share[j] >= 0.01][:3]
    if others:
        said += "; others " + ", ".join(
            f"{choice_name(plan, j)} ({100 * plan.share[j]:.0f} %)" for j in others
        )
        sizes = chosen_span(plan, plan.options.params_b) or []
        counts = chosen_span(plan, plan.options.visual_tokens) or []
        said += "; 95 % lie in N {:g}B to {:g}B, V {:g} to {:g}".format(*sizes, *counts)
    return f"{said}. In 95 of 100 it loses at most {100 * (plan.worst_regret or 0):.2f} points to their best."


def chosen_span(plan: Plan, values: np.ndarray) -> list[float] | None:
    """The central 95 % of what the bootstrap laws choose, of the options' sizes or token counts [K]."""
    if plan.share is None:
        return None
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(plan.share[order])
    return [float(values[order[np.searchsorted(reached, at - 1e-9)]]) for at in (0.025, 0.975)]


def notes(plan: Plan, asked: Question) -> list[str]:
    """What a reader must know before acting on it."""
    fit, options, k = asked.fit, plan.options, plan.best
    said = []
    if fit.other is not None:
        j = choice_of(fit.other, options, plan.budget)
        meaning = "Q + V" if fit.other.tokens == "Q+V" else "V"
        said.append(
            f"With T = {meaning} the same scores recommend {'the same' if j == k else choice_name(plan, j)}; "
            "the scores do not say which T is right."
        )
    said += _extrapolation_notes(plan, asked)
    said += measured_notes(plan, asked.lengths, asked.setup)
    if options.fits is not None and not options.fits.all():
        machine = asked.setup.machine
        assert machine is not None
        names = dict.fromkeys(size_name(options.params_b[j]) for j in np.flatnonzero(~options.fits))
        said.append(
            f"Left out for the {machine.memory / 2**30:.3g} GiB of {machine.name}, at least at some "
            f"V: {', '.join(names)}."
        )
    if asked.counted:
        fixed = options.flops["tower"][k] / sum(options.flops[part][k] for part in PARTS)
        said.append(
            f"The vision tower is {100 * fixed:.0f} % of this choice's FLOPs and the same for all; the "
            "published cost 2N(Q + V) leaves out tower, compressor, the question's encoder and decode."
        )
        if any(options.flops["query"] == 0) and any(options.flops["query"] > 0):
            read = {"decoder": "all weights", "early_exit": "the weights of its layers"}
            once_more = read.get(asked.setup.query.encoder)
            waits = f", and with small batches the question waits for {once_more} once more" * bool(once_more)
            said.append(
                "All patches as tokens need neither compressor nor an encoder of the question; fewer pay for "
                f"both{waits}."
            )
    elif fit.law.tokens == "V":
        best = fit.law.optimal_visual_tokens(float(options.visual_tokens[0]), np.inf)
        closed = "more tokens always win" if np.isinf(best) else f"V* = beta Q / (alpha - beta) = {best:.3g}"
        said.append(f"If N could take any value, the closed form would say: {closed}.")
    return said + [f"Of the fit: {sentence}" for sentence in fit.findings]


def _extrapolation_notes(plan: Plan, asked: Question) -> list[str]:
    """Which sizes and token counts of the choices the law was not fitted on."""
    o, fit, outside = plan.options, asked.fit, extrapolated(plan, asked)
    sizes = sorted({float(o.params_b[k]) for k, what in enumerate(outside) if "params_b" in what})
    counts = sorted({float(o.visual_tokens[k]) for k, what in enumerate(outside) if "visual_tokens" in what})
    (least, most), (few, many) = fit.reach
    said = []
    if sizes:
        verb, whose = ("lies", "its error is") if len(sizes) == 1 else ("lie", "their errors are")
        said.append(
            f"{', '.join(map(size_name, sizes))} {verb} outside the sizes {size_name(least)} to {size_name(most)} "
            f"that the law was fitted on: {whose} extrapolated."
        )
    if counts:
        t = "" if fit.law.tokens == "V" else f" and Q = {fit.law.query_tokens:g}, together T,"
        verb = "lies" if len(counts) == 1 else "lie"
        said.append(
            f"V = {', '.join(f'{v:g}' for v in counts)}{t} {verb} outside the {few:g} to {many:g} tokens that the "
            "law was fitted on: errors there are extrapolated."
        )
    return said


def sentences(plan: Plan, asked: Question) -> list[str]:
    """All that is said beside the numbers, to people: why there are so many visual tokens, then the notes."""
    return [*why_many_tokens(plan, asked), *notes(plan, asked)]


def why_many_tokens(plan: Plan, asked: Question) -> list[str]:
    """Why the recommendation takes more visual tokens than the fewest: they buy what is left where no larger LLM
    can be bought."""
    options, k, kind = plan.options, plan.best, asked.setup.kind
    if options.visual_tokens[k] == options.visual_tokens.min():
        return []
    rest = "the rest of the budget goes into visual tokens"
    larger = np.flatnonzero(options.allowed & (options.params_b > options.params_b[k]))
    if not larger.size:
        return [
            f"No LLM of these is larger than {options.llms[k]} and can be run, so {rest}; --llms takes others."
        ]
    following = larger[options.params_b[larger] == options.params_b[larger].min()]
    cheapest = following[np.argmin(options.cost[following])]
    if options.cost[cheapest] <= plan.budget * (1 + 1e-12):
        return []
    return [
        f"The next larger LLM, {options.llms[cheapest]}, costs at least {amount(options.cost[cheapest], kind)} "
        f"{PER[kind]}, above the budget, so {rest}."
    ]


def plan_record(plan: Plan, asked: Question) -> Record:
    """What plan.json holds; plain JSON values, null where a number does not exist."""
    options, law, setup = plan.options, asked.fit.law, asked.setup
    on_frontier = set(plan.frontier.tolist())
    machine = None if setup.machine is None else dataclasses.asdict(setup.machine)
    if machine is not None and setup.measured is not None:
        # Its figures are the peaks; what is reached of them differs from part to part.
        machine["efficiency"] = None
    reads = reads_question(setup.compressor)
    choices = [_choice_record(plan, k) | {"on_frontier": k in on_frontier} for k in range(len(options.cost))]
    for choice, outside in zip(choices, extrapolated(plan, asked), strict=True):
        # An entry of those alone that lie outside, so that a plan within the grid reads as it did in version 0.1.
        choice.update({"extrapolated": list(outside)} if outside else {})
    optimum = None
    if not asked.counted and law.tokens == "V":
        v = law.optimal_visual_tokens(float(options.visual_tokens.min()), float(options.visual_tokens.max()))
        optimum = {"visual_tokens": v, "params_b": plan.budget / (2e9 * (law.query_tokens + v))}
    return {
        "fit": asked.fit.name,
        "law": {
            **{k: float(v) for k, v in law.params._asdict().items()},
            "tokens_convention": law.tokens,
            "formula": law.formula(),
        },
        "cost_model": "counted" if asked.counted else "published",
        "query_tokens": asked.lengths.text,
        "question_tokens": asked.lengths.question if asked.counted else None,
        "answer_tokens": asked.lengths.answer if asked.counted else None,
        "compressor": setup.compressor if asked.counted else None,
        "query_encoder": encoder_name(setup.query) if asked.counted and reads else None,
        "machine": machine,
        "efficiency": efficiency_record(plan, asked.lengths, setup),
        "batch": setup.batch if machine else None,
        "weights": setup.weights if machine else None,
        "usd_per_hour": setup.usd_per_hour,
        "budget": {"limit": plan.budget, "unit": UNITS[setup.kind]},
        "recommendation": choices[plan.best]
        | {
            "params_b_interval": chosen_span(plan, options.params_b),
            "visual_tokens_interval": chosen_span(plan, options.visual_tokens),
            "worst_regret_95": plan.worst_regret,
        },
        "neighbours": [choices[n.option] | {"over_budget": n.over_budget} for n in plan.neighbours],
        "frontier": [choices[k] for k in plan.frontier],
        "choices": choices,
        "other_convention": None
        if asked.fit.other is None
        else {
            "tokens_convention": asked.fit.other.tokens,
            "choice": choices[choice_of(asked.fit.other, options, plan.budget)],
        },
        "closed_form": optimum,
        "training": [
            {"name": way.name, **way.memory._asdict(), "total": way.memory.total, "verdict": way.verdict}
            for way in training_of(plan, asked)
        ],
        "advice": advice(plan, asked),
        "notes": notes(plan, asked),
    }


def _choice_record(plan: Plan, k: int) -> Record:
    o = plan.options

    def pair(values: np.ndarray | None) -> list[float] | None:
        return None if values is None else [float(x) for x in values[k]]

    def single(values: np.ndarray | None) -> float | None:
        return None if values is None else float(values[k])

    return {
        "params_b": float(o.params_b[k]),
        "llm": o.llms[k],
        "visual_tokens": float(o.visual_tokens[k]),
        "cost": float(o.cost[k]),
        "cost_at_peaks": single(o.cost_at_peaks),
        "error": float(plan.error[k]),
        "error_interval": pair(plan.error_interval),
        "chosen_share": single(plan.share),
        "regret": float(plan.regret[k]),
        "regret_interval": pair(plan.regret_interval),
        "frontier_share": single(plan.frontier_share),
        "affordable": bool(o.allowed[k] and o.cost[k] <= plan.budget * (1 + 1e-12)),
        "flops": {part: float(values[k]) for part, values in o.flops.items()},
        "seconds": {part: float(values[k]) for part, values in o.seconds.items()} or None,
        "seconds_at_peaks": {part: float(values[k]) for part, values in o.seconds_at_peaks.items()} or None,
        "memory_bytes": single(o.memory),
        "fits_memory": None if o.fits is None else bool(o.fits[k]),
    }


def training_of(plan: Plan, asked: Question) -> list[TrainingCost]:
    """Ways to train the recommended choice; none where its cost is published or no machine is named."""
    if not asked.counted or asked.setup.machine is None:
        return []
    o, k = plan.options, plan.best
    return training_costs(o.llms[k], o.params_b[k], o.visual_tokens[k], asked.setup)


def _span(intervals: np.ndarray | None, k: int) -> str:
    return "" if intervals is None else f" (95 % interval {ends(*intervals[k])})"
