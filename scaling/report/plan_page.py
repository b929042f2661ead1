"""The page of a plan and its figures."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from quecc_jax.pages.page import Section, bullets, html_page, paragraph, table_html
from quecc_jax.pages.render import figure_to_png
from quecc_jax.pages.style import THEMES, Style
from scaling.cost import Llm
from scaling.planner import Plan, costs_over_text
from scaling.report import plan_report, plan_tables
from scaling.report.explorer import Start, explorer_data, explorer_html
from scaling.report.plan_report import Question
from scaling.report.plot import (
    Look,
    canvas,
    count_entries,
    draw_frontier,
    legend,
    marker,
    size_entries,
    write_below,
)
from scaling.report.prices import counted_prices, published_prices
from scaling.report.tokens_map import TEXT_LENGTHS, cost_axis, figure_best_tokens, published_costs, tokens_map


def files(plan: Plan, asked: Question, llms: Sequence[Llm]) -> dict[str, str | bytes]:
    """Name and content of plan.html and its PNG figures; `llms` is empty under the published cost."""
    law, setup = asked.fit.law, asked.setup
    llms = sorted(llms, key=lambda llm: llm.params_b)
    sizes = [llm.params_b for llm in llms] or np.unique(plan.options.params_b).tolist()
    counts = np.unique(plan.options.visual_tokens).tolist()
    if llms:
        costs = costs_over_text(llms, counts, asked.lengths, setup, TEXT_LENGTHS)
        prices = counted_prices(llms, counts, setup)
    else:
        costs = published_costs(sizes, counts, TEXT_LENGTHS)
        prices = published_prices(sizes)
    found = tokens_map(law, sizes, counts, costs)
    start = Start(plan.budget, *asked.lengths)
    data = explorer_data(law, asked.fit.samples, counts, prices, start, asked.fit.table, asked.fit.reach)
    at = asked.lengths.text, plan.budget
    caption = f"{asked.convention}; {asked.cost_model_of_all}."
    return {
        "error_vs_cost.png": figure_to_png(figure_error_vs_cost(plan, asked)),
        "best_tokens.png": figure_to_png(figure_best_tokens(found, setup.kind, caption, at)),
        "plan.html": page(plan, asked, explorer_html(data)),
    }


def page(plan: Plan, asked: Question, explorer: str) -> str:
    """The whole document; `explorer` is its interactive part."""

    def table(made: plan_tables.Table, label: str) -> str:
        return table_html(made[1], made[0], label)

    encoders, training = plan_tables.encoders_table(plan, asked), plan_tables.training_table(plan, asked)
    sections = [
        Section(
            "What the budget buys",
            [
                paragraph(plan_report.advice(plan, asked)),
                table(plan_tables.parts_table(plan, asked), "Where the cost goes"),
                *([] if encoders is None else [table(encoders, "Encoders of the question")]),
                *([] if training is None else [table(training, "Memory of its training")]),
                paragraph(f"Law: {asked.fit.law.formula()}.", "muted"),
                bullets(plan_report.sentences(plan, asked), "note"),
            ],
        ),
        Section(
            "Other budgets, lengths and choices",
            [
                paragraph(
                    "Move the sliders, switch sizes and token counts; the page computes anew what to buy. "
                    "A click on the map sets Q and the budget, as its arrow keys do."
                ),
                explorer,
            ],
        ),
        Section(
            "One step away",
            [
                paragraph(
                    "Regret is the predicted error above the recommended choice's, in points of score; "
                    "its interval is over the bootstrap laws."
                ),
                table(plan_tables.neighbour_table(plan, asked), "Choices one step away"),
            ],
        ),
        Section(
            "The whole frontier",
            [
                paragraph("Choices that no cheaper one matches, by rising cost."),
                table(plan_tables.frontier_table(plan, asked), "The frontier"),
            ],
        ),
    ]
    return html_page(f"Plan: {asked.fit.name}", sections, f"{asked.cost_model}; {asked.convention}")


def figure_error_vs_cost(plan: Plan, asked: Question, style: Style = "light") -> Figure:
    """Predicted error of every choice against its cost, the frontier, the budget and what it buys.

    Hollow choices do not fit the machine's memory.
    """
    theme, o = THEMES[style], plan.options
    figure, axes = canvas(theme)
    best = plan.frontier
    draw_frontier(axes, theme, o.cost[best], plan.error[best])
    sizes, counts = np.unique(o.params_b), np.unique(o.visual_tokens)
    for n, colour in zip(sizes, theme.colours(len(sizes)), strict=True):
        for llm in dict.fromkeys(name for name, size in zip(o.llms, o.params_b, strict=True) if size == n):
            mine = np.array([name == llm for name in o.llms])
            axes.plot(o.cost[mine], plan.error[mine] * 100, color=colour, lw=1.4, zorder=2)
            for k in np.flatnonzero(mine):
                look = {**marker(counts, o.visual_tokens[k]), "mfc": colour if o.allowed[k] else theme.paper}
                axes.plot(o.cost[k], plan.error[k] * 100, **look, color=colour, zorder=3)
    ring: Look = {"ms": 16, "mfc": "none", "mec": theme.accent, "mew": 2}
    axes.plot(o.cost[plan.best], plan.error[plan.best] * 100, "o", **ring, zorder=4)
    axes.axvline(plan.budget, color=theme.accent, lw=1.4, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        "budget",
        (plan.budget, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=theme.accent,
        fontsize=11,
    )
    axes.set_xscale("log")
    cost_axis(axes, "x", asked.setup.kind)
    axes.set_ylabel("predicted error (%)")
    legend(figure, theme, {"N =": size_entries(sizes, theme), "V =": count_entries(counts, theme)})
    write_below(figure, theme, f"{asked.convention}; {asked.cost_model}")
    return figure
