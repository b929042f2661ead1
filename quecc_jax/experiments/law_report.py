"""The report's section on the fitted laws: constants, pictures, frontier and what to buy."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from quecc_jax.errors import UserError
from quecc_jax.experiments import summary
from quecc_jax.experiments.figures import embed
from quecc_jax.experiments.findings import brief, title
from quecc_jax.experiments.summary import Results
from quecc_jax.pages.page import Section, bullets, paragraph, table_html
from quecc_jax.pages.style import Style
from scaling.fit import Fit
from scaling.formatting import flops_text
from scaling.frontier import law_choices, pareto
from scaling.law import PARAMETERS
from scaling.report.fit_report import interval_text
from scaling.report.plot import figure_error_vs_flops, figure_residuals
from scaling.table import ScoreTable


def law_section(results: Results, out: Path) -> Section:
    """Law, residuals and frontier of each task; figures are written to `out` too."""
    fragments = [
        paragraph(
            "error = A / N^alpha / T^beta + D, fitted by least squares for each task alone. N counts the "
            "decoder's parameters without embeddings, in billions; compute is counted for one question."
        )
    ]
    for task in results["tasks"]:
        fragments.append(f"<h3>{title(task)}</h3>")
        if task not in results["fits"]:
            fragments.append(paragraph("No law was fitted for this task.", "muted"))
            continue
        try:
            table = summary.score_table(results, task)
        except UserError as problem:
            fragments.append(paragraph(f"No law can be drawn: {problem}", "muted"))
            continue
        fragments += _task_fragments(results, task, table, out)
    return Section("The fitted laws and the compute frontier", fragments)


def advice(fit: Fit, table: ScoreTable) -> str:
    """What the law says about where more compute should go, with a warning if it says little."""
    low, high = float(table.visual_tokens[0]), float(table.visual_tokens[-1])
    alpha, beta = fit.law.params.alpha, fit.law.params.beta
    best = fit.law.optimal_visual_tokens(low, high)
    if alpha == 0 and beta == 0:
        return "By the law neither size nor visual tokens lower the error: take the cheapest model."
    if best >= high:
        end = f"more visual tokens win over a larger decoder all the way to the {high:g} measured"
    elif best <= low:
        end = f"a larger decoder wins over more visual tokens, from {low:g} on"
    else:
        end = f"the least error is at about {best:.2g} visual tokens and the largest decoder that then fits"
    sentence = (
        f"By the law, at a fixed cost of 2N(Q + V) with Q = {fit.law.query_tokens:g} text tokens, {end}."
    )
    if not fit.r2 >= 0.7:
        sentence += " It explains too little of the scores to be relied on; the measured frontier is safer."
    return sentence


def _task_fragments(results: Results, task: str, table: ScoreTable, out: Path) -> list[str]:
    record = results["fits"][task]
    fit = summary.stored_fit(results, task, table)
    cost = summary.cost(results, task, fit.law)
    explained = "all scores are equal"
    if not math.isnan(fit.r2):
        explained = f"the law explains {100 * fit.r2:.1f} % of their variance"
    notes = list(record.get("findings", ()))
    if not fit.converged:
        notes.insert(0, "The search for the constants did not converge.")
    constants = []
    for name in PARAMETERS:
        interval = interval_text((record.get("ci") or {}).get(name), digits=3)
        bound = "on its bound" if name in fit.bounds_hit else ""
        constants.append([name, f"{getattr(fit.law.params, name):.4g}", interval, bound])

    def against_flops(style: Style) -> Figure:
        return figure_error_vs_flops(table, fit, style, cost)

    def residuals(style: Style) -> Figure:
        return figure_residuals(table, fit, style)

    return [
        paragraph(fit.law.formula(), "formula"),
        paragraph(
            f"{advice(fit, table)} Over {fit.n_points} scores {explained}; typically it is "
            f"{100 * fit.rmse:.1f} points off."
        ),
        *(['<div class="note">' + bullets(notes) + "</div>"] if notes else []),
        table_html(constants, ["constant", "value", "95 % interval", ""]),
        embed(
            out,
            f"law_{task}",
            against_flops,
            f"Error against compute, task {task}",
            "Curves: the law. Markers: measured, filled where no cheaper measured model is as good. "
            "Band: the least error that each cost buys by the law.",
        ),
        embed(
            out,
            f"residuals_{task}",
            residuals,
            f"Residuals of the law, task {task}",
            "Measured minus fitted error. The band is one root mean square.",
        ),
        *_frontier_fragments(results, task, table, fit),
    ]


def _frontier_fragments(results: Results, task: str, table: ScoreTable, fit: Fit) -> list[str]:
    scores, names = (summary.grid(results, task), {d["params"] / 1e9: d["name"] for d in results["decoders"]})
    choices = law_choices(fit.law, table.params_b, table.visual_tokens, summary.cost(results, task, fit.law))
    rows = []
    for n, v, spent, error in zip(*pareto(choices), strict=True):
        measured = scores.get((names[n], int(v)))
        shown = brief(measured) if measured else "–"
        rows.append([flops_text(spent), names[n], int(v), f"{100 * (1 - error):.1f}", shown])
    header = ["compute per question", "decoder", "V", "accuracy by the law, %", "measured, %"]
    return [
        paragraph("What more compute buys, by the law; models that are not listed cost more for less:"),
        table_html(rows, header),
    ]
