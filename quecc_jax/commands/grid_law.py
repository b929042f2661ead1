"""The fitted laws of a grid: the fits themselves, and the report's section on them."""

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from quecc_jax.errors import UserError
from quecc_jax.experiments import stats
from quecc_jax.experiments.results import Results
from quecc_jax.experiments.stats import title
from quecc_jax.pages.numbers import flops_text
from quecc_jax.pages.page import Section, bullets, paragraph, part, table_html
from quecc_jax.pages.render import embed
from quecc_jax.records import Count, Finite, NonNegative, of_form
from scaling.diagnostics.assess import assess
from scaling.fit import NON_NEGATIVE, Fit, VariableProjection, fit_law
from scaling.frontier import Cost, law_choices, measured_cost, pareto, published_cost
from scaling.law import PARAMETERS, Law
from scaling.report.fit_report import fit_record, interval_text
from scaling.report.plot import figure_error_vs_flops, figure_residuals
from scaling.saved_fit import StoredLaw
from scaling.table import ScoreTable, checked


def fit_laws(results: Results) -> dict[str, Any]:
    """The scaling law of each task, fitted to the mean error over seeds.

    A grid that is too small for a law still has its answers to report: such tasks are left out.
    """
    fits = {}
    for task in stats.tasks(results["rows"]):
        try:
            table = score_table(results, task)
            fit = fit_law(table, query_tokens=results["steps"]["data"]["prompt_tokens"])
        except UserError as problem:
            print(f"no law was fitted for {task}: {problem}", file=sys.stderr)
            continue
        fits[task] = fit_record(table, fit, assess(table, fit))
    return fits


def score_table(results: Results, task: str) -> ScoreTable:
    """The grid as the fitter's table: sizes in billions of decoder parameters, ascending.

    Raises UserError if the finished cells cannot determine a law.
    """
    scores, llms = stats.scores(results["rows"], task), stats.by_size(results)
    counts = sorted(results["visual_tokens"])

    def table(field: str) -> np.ndarray:
        return np.array([[getattr(scores.get((d["name"], v)), field, np.nan) for v in counts] for d in llms])

    return checked(
        ScoreTable(
            params_b=np.array([llm["params"] / 1e9 for llm in llms]),
            visual_tokens=np.array(counts, np.float64),
            score=table("mean"),
            # The cautious one: of two or three seeds that happen to agree, none could be told from the law.
            stderr=table("cautious"),
            name=task,
        )
    )


class _CrossCheck(msgspec.Struct):
    sse: NonNegative


class _StoredFit(StoredLaw):
    """What the report reads of a fit's record."""

    query_tokens: NonNegative
    sse: NonNegative
    r2: Finite | None
    bounds_hit: list[str]
    n_starts: Count
    n_agreeing: Count
    converged: bool
    cross_check: _CrossCheck
    fixed: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    ci: dict[str, Annotated[list[Finite | None], msgspec.Meta(min_length=2, max_length=2)]] | None = None


def _stored(results: Results, task: str) -> _StoredFit:
    return of_form(
        results["fits"][task],
        _StoredFit,
        f"the results' fit of {task}",
        "let the grid's command write it anew",
    )


def stored_fit(results: Results, task: str, table: ScoreTable) -> Fit:
    """The run's own fit of a task, ready to draw: residuals are recomputed from law and table."""
    record = _stored(results, task)
    law = record.law(record.query_tokens)
    return Fit(
        law=law,
        residuals=law.error(table.params_b[:, None], table.visual_tokens[None, :]) - table.error,
        sse=record.sse,
        r2=math.nan if record.r2 is None else record.r2,
        n_points=int(np.isfinite(table.score).sum()),
        n_parameters=len(PARAMETERS) - len(record.fixed),
        bounds=NON_NEGATIVE,
        bounds_hit=tuple(record.bounds_hit),
        n_starts=record.n_starts,
        n_agreeing=record.n_agreeing,
        iterations=0,
        converged=record.converged,
        cross_check=VariableProjection(law.params, record.cross_check.sse),
        objective=record.sse,
    )


def counted_cost(results: Results, task: str, law: Law) -> Cost:
    """Counted FLOPs if every cell of the grid has them, the published 2 N (Q + V) otherwise."""
    found, counts = stats.scores(results["rows"], task), results["visual_tokens"]
    scores = [[found.get((llm["name"], v)) for v in counts] for llm in results["llms"]]
    flops = [[one.flops for one in row if one is not None and one.flops is not None] for row in scores]
    if any(len(row) < len(counts) for row in flops):
        return published_cost(law.query_tokens)
    return measured_cost([llm["params"] / 1e9 for llm in results["llms"]], counts, flops)


def law_section(results: Results, out: Path) -> Section:
    """Law, residuals and frontier of each task; figures are written to `out` too."""
    fragments = [
        paragraph(
            "error = A / N^alpha / T^beta + D, fitted by least squares for each task alone. N counts the "
            "decoder's parameters without embeddings, in billions; compute is counted for one question."
        )
    ]
    for task in stats.tasks(results["rows"]):
        fragments.append(part("heading", title(task)))
        if task not in results["fits"]:
            fragments.append(paragraph("No law was fitted for this task.", "muted"))
            continue
        try:
            table = score_table(results, task)
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
    record, fit = _stored(results, task), stored_fit(results, task, table)
    cost = counted_cost(results, task, fit.law)
    explained = "all scores are equal"
    if not math.isnan(fit.r2):
        explained = f"the law explains {100 * fit.r2:.1f} % of their variance"
    notes = list(record.findings)
    if not fit.converged:
        notes.insert(0, "The search for the constants did not converge.")
    constants = []
    for name, value in zip(PARAMETERS, fit.law.params, strict=True):
        interval = interval_text((record.ci or {}).get(name), digits=3)
        constants.append([name, f"{value:.4g}", interval, "on its bound" if name in fit.bounds_hit else ""])
    scores, names = (
        stats.scores(results["rows"], task),
        {d["params"] / 1e9: d["name"] for d in results["llms"]},
    )
    choices = pareto(law_choices(fit.law, table.params_b, table.visual_tokens, cost))
    frontier = [
        [flops_text(spent), names[n], int(v), f"{100 * (1 - error):.1f}", scores.get((names[n], int(v)), "–")]
        for n, v, spent, error in zip(*choices, strict=True)
    ]
    return [
        paragraph(fit.law.formula(), "formula"),
        paragraph(
            f"{advice(fit, table)} Over {fit.n_points} scores {explained}; typically it is "
            f"{100 * fit.rmse:.1f} points off."
        ),
        *([bullets(notes, "note")] if notes else []),
        table_html(
            constants, ["constant", "value", "95 % interval", "remark"], f"The law's constants, {task}"
        ),
        embed(
            out,
            f"law_{task}",
            lambda style: figure_error_vs_flops(table, fit, style, cost),
            f"Error against compute, task {task}",
            "Curves: the law. Markers: measured, filled where no cheaper measured model is as good. "
            "Band: the least error that each cost buys by the law.",
        ),
        embed(
            out,
            f"residuals_{task}",
            lambda style: figure_residuals(table, fit, style),
            f"Residuals of the law, task {task}",
            "Measured minus fitted error. The band is one root mean square.",
        ),
        paragraph("What more compute buys, by the law; models that are not listed cost more for less:"),
        table_html(
            frontier,
            ["compute per question", "decoder", "V", "accuracy by the law, %", "measured, %"],
            f"What more compute buys, {task}",
        ),
    ]
