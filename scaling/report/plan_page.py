"""The page and pictures of a plan."""

from collections.abc import Sequence

import numpy as np

from quecc_jax.pages.page import Section, bullets, html_page, paragraph, table_html
from scaling.cost import Llm, counted_prices
from scaling.planner import Plan, costs_over_text
from scaling.report import plan_report
from scaling.report.explorer import Start, explorer_data, explorer_html, published_prices
from scaling.report.plan_plot import figure_error_vs_cost
from scaling.report.plan_report import Question
from scaling.report.plot import figure_to_png
from scaling.report.tokens_map import TEXT_LENGTHS, figure_best_tokens, published_costs, tokens_map


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
    data = explorer_data(law, asked.fit.samples, counts, prices, start, asked.fit.table)
    at = asked.lengths.text, plan.budget
    caption = f"{asked.convention}; {asked.cost_model_of_all}."
    return {
        "error_vs_cost.png": figure_to_png(figure_error_vs_cost(plan, asked)),
        "best_tokens.png": figure_to_png(figure_best_tokens(found, setup.kind, caption, at)),
        "plan.html": page(plan, asked, explorer_html(data)),
    }


def page(plan: Plan, asked: Question, explorer: str) -> str:
    """The whole document; `explorer` is its interactive part."""

    def table(made: plan_report.Table) -> str:
        return table_html(made[1], made[0])

    encoders = plan_report.encoders_table(plan, asked)
    sections = [
        Section(
            "What the budget buys",
            [
                paragraph(plan_report.advice(plan, asked)),
                table(plan_report.parts_table(plan, asked)),
                *([] if encoders is None else [table(encoders)]),
                paragraph(f"Law: {asked.fit.law.formula()}.", "muted"),
                '<div class="note">' + bullets(plan_report.notes(plan, asked)) + "</div>",
            ],
        ),
        Section(
            "Other budgets, lengths and choices",
            [
                paragraph(
                    "Move the sliders, switch sizes and token counts; the page computes anew what to buy. "
                    "A click on the map sets Q and the budget."
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
                table(plan_report.neighbour_table(plan, asked)),
            ],
        ),
        Section(
            "The whole frontier",
            [
                paragraph("Choices that no cheaper one matches, by rising cost."),
                table(plan_report.frontier_table(plan, asked)),
            ],
        ),
    ]
    names = "td:first-child { white-space: nowrap; }"
    return html_page(f"Plan: {asked.fit.name}", sections, f"{asked.cost_model}; {asked.convention}", names)
