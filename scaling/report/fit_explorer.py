"""The interactive part of a fit's page and the map of V*, both at the published cost."""

import numpy as np
from matplotlib.figure import Figure

from quecc_jax.pages.page import Section, paragraph
from quecc_jax.pages.style import Style
from scaling.fit import Fit
from scaling.frontier import published_cost
from scaling.report.explorer import Start, explorer_data, explorer_html, published_prices
from scaling.report.tokens_map import TEXT_LENGTHS, figure_best_tokens, published_costs, tokens_map
from scaling.table import ScoreTable
from scaling.uncertainty import Uncertainty


def figure_map(table: ScoreTable, fit: Fit, style: Style = "light") -> Figure:
    """V*(Q, budget) over the measured sizes and token counts."""
    sizes, counts = table.params_b, table.visual_tokens
    found = tokens_map(fit.law, sizes, counts, published_costs(sizes, counts, TEXT_LENGTHS))
    return figure_best_tokens(
        found, "flops", f"{fit.law.convention}; published cost 2N(Q + V).", _start(table, fit), style
    )


def explorer_section(table: ScoreTable, fit: Fit, trust: Uncertainty) -> Section:
    """Sliders, switches, the chart and the map for the measured sizes and token counts."""
    text, budget = _start(table, fit)
    data = explorer_data(
        fit.law,
        trust.samples,
        table.visual_tokens.tolist(),
        published_prices(table.params_b.tolist()),
        Start(budget, text),
        table,
    )
    intro = (
        "Move the sliders, switch sizes and token counts; the page computes anew what to buy. A click on the "
        "map sets Q and the budget. Cost is the paper's 2N(Q + V); python -m scaling plan counts every part "
        "of a query, on a named chip too."
    )
    return Section("Try other budgets and lengths", [paragraph(intro), explorer_html(data)])


def _start(table: ScoreTable, fit: Fit) -> tuple[float, float]:
    """Q and a budget halfway, in the logarithm, from the cheapest cell to the dearest."""
    q = fit.law.query_tokens
    cost = published_cost(q)
    ends = cost(table.params_b[[0, -1]], table.visual_tokens[[0, -1]])
    return q, float(f"{np.sqrt(ends[0] * ends[1]):.3g}")
