"""The interactive part of the pages: a chart, a map and sliders that recompute the recommendation.

Everything is inline: the data as JSON, `assets/model.js` (law and costs) and `assets/explore.js` (drawing).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from quecc_jax.pages.page import Section, paragraph, render
from quecc_jax.pages.style import THEMES, Style
from scaling.diagnostics.assess import Uncertainty
from scaling.fit import Fit
from scaling.formatting import Record
from scaling.frontier import published_cost
from scaling.law import Law, Params, Reach
from scaling.report.plot import token_colours
from scaling.report.prices import published_prices
from scaling.report.tokens_map import TEXT_LENGTHS, figure_best_tokens, published_costs, tokens_map
from scaling.table import ScoreTable

SAMPLES = 1000
"""Bootstrap laws that the page carries."""
_ASSETS = Path(__file__).parent / "assets"


class Start(NamedTuple):
    """Where the sliders stand at first: budget, Q, G, and the tokens of the bare question."""

    budget: float
    text: float
    answer: int = 1
    question: float = 0


def explorer_data(
    law: Law,
    samples: Params[np.ndarray] | None,
    visual_tokens: Sequence[float],
    prices: Record,
    start: Start,
    table: ScoreTable | None = None,
    reach: Reach | None = None,
) -> Record:
    """What `assets/model.js` computes with; plain JSON values.

    `table` gives the measured cells among the choices, `reach` what the law was fitted on. The bare question
    grows with the text where both start at the same length.
    """
    counts = [_number(v) for v in sorted(visual_tokens)]
    t = "Q + V" if law.tokens == "Q+V" else "V"
    return {
        **prices,
        "law": [float(x) for x in law.params],
        "tokens": law.tokens,
        "samples": None if samples is None else _thinned(samples),
        "convention": f"T = {t}; {prices['cost_model']}",
        "counts": counts,
        "follows": start.question == start.text,
        "reach": None if reach is None else reach._asdict(),
        "start": {name: _number(value) for name, value in start._asdict().items()},
        "measured": [] if table is None else _measured(table, prices["llms"], counts),
    }


def explorer_html(data: Record) -> str:
    """The explorer as a fragment of a page, with its data and scripts."""
    # `</` would end the script that holds it.
    embedded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    css, *scripts = ((_ASSETS / name).read_text() for name in ("explore.css", "model.js", "explore.js"))
    template = "scaling/report/assets/explorer.html"
    return render(template, colours=_colours(data), css=css, data=embedded, scripts=scripts)


def _measured(table: ScoreTable, llms: Sequence[Record], counts: Sequence[float]) -> list[dict[str, float]]:
    cells = []
    for i, llm in enumerate(llms):
        for j, count in enumerate(counts):
            error = table.error[np.ix_(table.params_b == llm["n"], table.visual_tokens == count)]
            if error.size and np.isfinite(error[0, 0]):
                cells.append({"i": i, "j": j, "error": float(error[0, 0])})
    return cells


def _thinned(samples: Params[np.ndarray]) -> list[list[float]]:
    rows = np.stack(samples, axis=1)
    step = max(1, -(-len(rows) // SAMPLES))
    return [[float(f"{x:.7g}") for x in row] for row in rows[::step]]


def _colours(data: Record) -> str:
    def block(style: Style) -> str:
        theme = THEMES[style]
        sizes, counts = theme.colours(len(data["llms"])), token_colours(len(data["counts"]))
        names = [("n", k, c) for k, c in enumerate(sizes)] + [("v", k, c) for k, c in enumerate(counts)]
        return "#explorer{" + "".join(f"--{what}{k}:{to_hex(c)};" for what, k, c in names) + "}"

    return f"{block('light')}@media (prefers-color-scheme: dark){{{block('dark')}}}"


def _number(value: float) -> float:
    """Whole numbers without a decimal point."""
    return int(value) if float(value).is_integer() else float(value)


def figure_map(table: ScoreTable, fit: Fit, style: Style = "light") -> Figure:
    """V*(Q, budget) over the measured sizes and token counts."""
    sizes, counts = table.params_b, table.visual_tokens
    found = tokens_map(fit.law, sizes, counts, published_costs(sizes, counts, TEXT_LENGTHS))
    return figure_best_tokens(
        found, "flops", f"{fit.law.convention}; published cost 2N(Q + V).", _middle(table, fit), style
    )


def explorer_section(table: ScoreTable, fit: Fit, trust: Uncertainty) -> Section:
    """Sliders, switches, the chart and the map for the measured sizes and token counts."""
    text, budget = _middle(table, fit)
    data = explorer_data(
        fit.law,
        trust.samples,
        table.visual_tokens.tolist(),
        published_prices(table.params_b.tolist()),
        Start(budget, text),
        table,
        fit.law.reach(*table.observed_axes),
    )
    intro = (
        "Move the sliders, switch sizes and token counts; the page computes anew what to buy. A click on the "
        "map sets Q and the budget, as its arrow keys do. Cost is the paper's 2N(Q + V); python -m scaling plan "
        "counts every part of a query, on a named chip too."
    )
    return Section("Try other budgets and lengths", [paragraph(intro), explorer_html(data)])


def _middle(table: ScoreTable, fit: Fit) -> tuple[float, float]:
    """Q and a budget halfway, in the logarithm, from the cheapest cell to the dearest."""
    q = fit.law.query_tokens
    cost = published_cost(q)
    ends = cost(table.params_b[[0, -1]], table.visual_tokens[[0, -1]])
    return q, float(f"{np.sqrt(ends[0] * ends[1]):.3g}")
