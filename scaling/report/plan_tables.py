"""The tables of a plan, for its page and the terminal."""

import numpy as np

from quecc_jax.pages.numbers import flops_text
from scaling.cost import encoder_costs
from scaling.formatting import PER, amount, ends, percent
from scaling.planner import Plan
from scaling.report.plan_report import PART_NAMES, Question, encoder_name, marked, training_of

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def parts_table(plan: Plan, asked: Question) -> Table:
    """Where the recommended choice's cost goes; both times where an engine was measured."""
    o, k = plan.options, plan.best
    total = sum(values[k] for values in o.flops.values())
    header = ["part", "FLOPs per query", "share"]
    if o.seconds_at_peaks:
        header += ["time per batch at peaks", "bound by", "efficiency", "time per batch as measured"]
    elif o.seconds:
        header += ["time per batch", "bound by"]
    rows = []
    machine, batch = asked.setup.machine, asked.setup.batch
    for part, values in o.flops.items():
        row = [PART_NAMES[part], flops_text(values[k]), f"{100 * values[k] / total:.1f} %"]
        if o.seconds and machine is not None:
            roofline = (o.seconds_at_peaks or o.seconds)[part][k]
            compute = batch * values[k] / machine.flops
            bound = "–" if roofline == 0 else "FLOPs" if compute >= roofline * (1 - 1e-9) else "bandwidth"
            row += [amount(roofline, "seconds"), bound]
            if o.seconds_at_peaks:
                row += _measured(roofline, o.seconds[part][k])
        rows.append(row)
    last = ["all", flops_text(total), "100 %"]
    if o.seconds:
        roofline, seconds = (
            sum(values[k] for values in each.values())
            for each in (o.seconds_at_peaks or o.seconds, o.seconds)
        )
        last += [amount(roofline, "seconds"), ""]
        last += _measured(roofline, seconds) if o.seconds_at_peaks else []
    return header, [*rows, last]


def _measured(at_peaks: float, seconds: float) -> list[str]:
    """Efficiency and seconds of an engine."""
    reached = "–" if seconds == 0 else f"{100 * at_peaks / seconds:.1f} %"
    return [reached, amount(seconds, "seconds")]


def encoders_table(plan: Plan, asked: Question) -> Table | None:
    """What each encoder of the question would make of the recommended choice; None where nobody asks."""
    o, k = plan.options, plan.best
    if not o.flops.get("query", np.zeros(len(o.cost)))[k]:
        return None
    header = ["encoder of the question", "layers waited for", "FLOPs", "share of the query"]
    seconds = "time per batch" + (" as measured" if o.seconds_at_peaks else "")
    header += [seconds, "share"] if o.seconds else []
    rows = []
    for one in encoder_costs(o.llms[k], o.params_b[k], o.visual_tokens[k], asked.lengths, asked.setup):
        here = " (counted above)" if one.query == asked.setup.query else ""
        name, share = encoder_name(one.query) + here, f"{100 * one.share:.2g} %"
        row = [name, f"{one.layers}", flops_text(one.flops), share]
        if one.seconds is not None and one.seconds_share is not None:
            row += [amount(one.seconds, "seconds"), f"{100 * one.seconds_share:.2g} %"]
        rows.append(row)
    return header, rows


def training_table(plan: Plan, asked: Question) -> Table | None:
    """What each way to train the recommended choice holds per chip; None without a machine."""
    machine = asked.setup.machine
    ways = training_of(plan, asked)
    if machine is None or not ways:
        return None
    header = [
        "trained, GiB per chip",
        "parameters",
        "optimizer",
        "gradients",
        "activations (estimate)",
        "all",
        "one chip",
    ]
    limit = machine.memory / machine.count
    rows = [
        [
            way.name,
            *(f"{part / 2**30:.2f}" for part in (*way.memory, way.memory.total)),
            f"{way.verdict}, of {limit / 2**30:.3g}",
        ]
        for way in ways
    ]
    return header, rows


def frontier_table(plan: Plan, asked: Question) -> Table:
    """What every budget buys."""
    o, kind = plan.options, asked.setup.kind
    header = ["LLM", "V", f"cost {PER[kind]}{asked.as_measured}", "predicted error"]
    header += ["95 % interval", "on the bootstrap frontiers"] if plan.share is not None else []
    rows = []
    names = marked(plan, asked)
    for k in plan.frontier.tolist():
        row = [*names[k], amount(o.cost[k], kind), percent(plan.error[k])]
        if plan.frontier_share is not None and plan.error_interval is not None:
            row += [ends(*plan.error_interval[k]), f"{100 * plan.frontier_share[k]:.0f} %"]
        rows.append(row)
    return header, rows


def neighbour_table(plan: Plan, asked: Question) -> Table:
    """The recommended choice and those one step away."""
    o, kind = plan.options, asked.setup.kind
    header = [
        "LLM",
        "V",
        f"cost {PER[kind]}{asked.as_measured}",
        "of the budget",
        "predicted error",
        "regret, points",
    ]
    header += ["95 % interval", "chosen by"] if plan.share is not None else []
    rows = []
    names = marked(plan, asked)
    for k in sorted([plan.best, *(n.option for n in plan.neighbours)]):
        llm, count = names[k]
        row = [
            llm + (" (recommended)" if k == plan.best else ""),
            count,
            amount(o.cost[k], kind),
            f"{100 * o.cost[k] / plan.budget:.0f} %",
            percent(plan.error[k]),
            f"{100 * plan.regret[k]:+.2f}",
        ]
        if plan.share is not None and plan.regret_interval is not None:
            low, high = 100 * plan.regret_interval[k]
            row += ["" if k == plan.best else f"{low:+.2f} to {high:+.2f}", f"{100 * plan.share[k]:.0f} %"]
        rows.append(row)
    return header, rows
