"""A fit in words and figures: its JSON record and the sections of its HTML page."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from quecc_jax.pages.numbers import flops_text, size_name
from quecc_jax.pages.page import Section, bullets, figure_html, paragraph, table_html
from scaling.diagnostics.assess import Uncertainty
from scaling.diagnostics.lack_of_fit import LackOfFit, lack_of_fit_text
from scaling.fit import Fit
from scaling.formatting import Record
from scaling.frontier import Choices, law_choices, pareto, published_cost, recommend
from scaling.intervals import Interval, Profile
from scaling.law import PARAMETERS
from scaling.report.explorer import explorer_section
from scaling.report.plot import (
    figure_error_vs_flops,
    figure_error_vs_tokens,
    figure_in_both,
    figure_profiles,
    figure_residuals,
)
from scaling.table import ScoreTable

_LOSSES = {
    "least_squares": "Least squares",
    "weighted": "Least squares weighted by standard errors",
    "huber": "Huber loss on the logarithm of the error",
}


def fit_record(table: ScoreTable, fit: Fit, trust: Uncertainty) -> Record:
    """What fit.json holds of one fit; plain JSON values, null where a number does not exist."""
    law = fit.law
    return {
        "name": table.name,
        **{name: float(value) for name, value in zip(PARAMETERS, law.params, strict=True)},
        "sse": fit.sse,
        "r2": fit.r2 if math.isfinite(fit.r2) else None,
        "rmse": fit.rmse,
        "loss": fit.loss,
        "huber_delta": fit.huber_delta if fit.loss == "huber" else None,
        "objective": fit.objective,
        "method": fit.method,
        "tokens_convention": law.tokens,
        "query_tokens": law.query_tokens,
        "bounds_hit": list(fit.bounds_hit),
        "fixed": [n for n, lo, hi in zip(PARAMETERS, *fit.bounds, strict=True) if lo == hi],
        "ci": None if trust.ci is None else {name: _plain(ends) for name, ends in trust.ci.items()},
        "ci_method": trust.ci_method,
        "bootstrap_ci": None
        if trust.bootstrap_ci is None
        else {name: list(ends) for name, ends in trust.bootstrap_ci.items()},
        "profiles": {name: _profile_record(curve) for name, curve in trust.profiles.items()},
        "n_points": fit.n_points,
        "n_starts": fit.n_starts,
        "n_agreeing": fit.n_agreeing,
        "converged": fit.converged,
        "cross_check": None
        if fit.cross_check is None
        else {
            "method": "variable projection" if fit.method == "starts" else "best in the grid's box",
            "sse": fit.cross_check.sse,
        },
        "lack_of_fit": _lack_of_fit_record(trust.lack_of_fit),
        "optimal_visual_tokens": fit.law.optimal_visual_tokens(*table.count_range),
        "optimal_visual_tokens_ci": None if trust.best_count is None else list(trust.best_count),
        "findings": trust.findings,
        "frontier": [
            dict(zip(Choices._fields, map(float, choice), strict=True))
            for choice in zip(*law_frontier(table, fit), strict=True)
        ],
    }


def _lack_of_fit_record(found: LackOfFit | None) -> Record | None:
    if found is None:
        return None
    return {**found._asdict(), "rejected": found.rejected, "widening": found.widening}


def _profile_record(curve: Profile) -> Record:
    columns = {"values": curve.values, "objective": curve.objective, **curve.params._asdict()}
    # Seven digits keep the file small.
    record = {name: [float(f"{x:.7g}") for x in column] for name, column in columns.items()}
    return record | {"interval": _plain(curve.interval)}


def _plain(ends: Interval) -> list[float | None]:
    """An interval in JSON: an end that nothing limits is null."""
    return [end if math.isfinite(end) else None for end in ends]


def interval_text(ends: Sequence[float | None] | None, digits: int = 4) -> str:
    """An interval in words; an end that nothing limits is None or infinite."""
    low, high = (
        "" if end is None or not math.isfinite(end) else f"{end:.{digits}g}" for end in ends or (None, None)
    )
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if low else f"{high} or less" if high else "–"


def law_frontier(table: ScoreTable, fit: Fit) -> Choices:
    """The frontier over the table's own sizes and counts, errors by the law, published cost."""
    cost = published_cost(fit.law.query_tokens)
    return pareto(law_choices(fit.law, table.params_b, table.visual_tokens, cost))


def advice(table: ScoreTable, fit: Fit, trust: Uncertainty) -> str:
    """What the law says to do with more compute, in one or two sentences."""
    law, p = fit.law, fit.law.params
    v_max = table.count_range[1]
    best = law.optimal_visual_tokens(*table.count_range)
    if p.alpha == 0 and p.beta == 0:
        return "Neither size nor visual tokens lower the error in these scores: take the cheapest choice."
    if law.tokens == "Q+V":
        side = "the fewest visual tokens and the largest LLM" if best < v_max else "the most visual tokens"
        return f"With T = Q + V the better exponent takes all: a fixed budget is best spent on {side}."
    if best >= v_max:
        return (
            f"More visual tokens beat a larger LLM all the way to the {v_max:g} measured: "
            "spend on tokens first, then on size."
        )
    within = "" if trust.best_count is None else " (95 % interval {:.3g} to {:.3g})".format(*trust.best_count)
    return (
        f"At any fixed inference cost 2N(Q + V) with Q = {law.query_tokens:g}, the least error is at about "
        f"{best:.3g} visual tokens{within} with the largest LLM that then fits."
    )


def grid_note(fit: Fit, best: Fit) -> str:
    """What the grid's best point is worth."""
    return (
        f"The best of all {fit.n_starts:,} grid points has SSE {fit.sse:.4e}; between the points, in the "
        f"same box, lies {best.sse:.4e} ({best.law.formula()}). Intervals and checks are of the latter."
    )


def fit_sections(
    table: ScoreTable, fit: Fit, trust: Uncertainty, others: Mapping[str, Fit] | None = None
) -> list[Section]:
    """The page's sections for one table; `others` are rival fits to set beside this one."""
    return [
        _law_section(table, fit, trust),
        _frontier_section(table, fit),
        explorer_section(table, fit, trust),
        _shape_section(table, fit),
        *([_profile_section(fit, trust)] if trust.profiles else []),
        _scores_section(table, fit),
        _checks_section(fit, trust, others),
    ]


def rivals_html(fits: Mapping[str, Fit], label: str) -> str:
    """A table of fits side by side, one row each; `label` as in `table_html`."""
    header = ["fit", "points", "A", "alpha", "beta", "D", "SSE", "best V"]
    rows = []
    for name, fit in fits.items():
        best = fit.law.optimal_visual_tokens()
        rows.append(
            [
                name,
                fit.n_points,
                *(f"{v:.4g}" for v in fit.law.params),
                f"{fit.sse:.4e}",
                "max" if math.isinf(best) else f"{best:.3g}",
            ]
        )
    return table_html(rows, header, label)


def _law_section(table: ScoreTable, fit: Fit, trust: Uncertainty) -> Section:
    rows = []
    for name, value in zip(PARAMETERS, fit.law.params, strict=True):
        ci = interval_text(None if trust.ci is None else trust.ci[name])
        state = "on its bound" if name in fit.bounds_hit else ""
        if getattr(fit.bounds.lower, name) == getattr(fit.bounds.upper, name):
            ci, state = "–", "fixed"
        rows.append([name, f"{value:.5g}", ci, state])
    missing = int(np.isnan(table.score).sum())
    points = f"{fit.n_points} scores" + (f" ({missing} missing)" if missing else "")
    r2 = f"{100 * fit.r2:.2f} % of the variance explained" if math.isfinite(fit.r2) else "all scores equal"
    fragments = [
        paragraph(fit.law.formula(), "formula"),
        paragraph(advice(table, fit, trust)),
        paragraph(
            f"N is the LLM's size in billions of parameters; {fit.law.convention}. "
            f"{_LOSSES[fit.loss]} on {points}: SSE {fit.sse:.4e}, typical distance "
            f"{100 * fit.rmse:.2f} points, {r2}."
        ),
        table_html(rows, ["constant", "value", "95 % interval", "remark"], "The law's constants"),
    ]
    if trust.ci is not None:
        fragments.append(paragraph(f"Intervals: {trust.ci_method}.", "muted"))
    if trust.findings:
        fragments.append(bullets(trust.findings, "note"))
    return Section("The law", fragments)


def _frontier_section(table: ScoreTable, fit: Fit) -> Section:
    cost = published_cost(fit.law.query_tokens)
    choices = law_choices(fit.law, table.params_b, table.visual_tokens, cost)
    low, high = choices.flops.min(), choices.flops.max()
    rows = []
    for budget in np.geomspace(low, high, 7):
        best = recommend(choices, budget)
        rows.append(
            [
                flops_text(budget),
                size_name(best.params_b),
                f"{best.visual_tokens:g}",
                flops_text(best.flops),
                f"{100 * best.error:.2f} %",
            ]
        )
    caption = (
        "Curves: the law. Markers: measured scores, filled where no cheaper measured choice is as good. "
        "Band: the least error that each cost buys, computed from the law over the measured sizes and any V."
    )
    figure = _both(table, fit, figure_error_vs_flops, "Error against inference FLOPs per query", caption)
    return Section(
        "What a budget buys",
        [
            figure,
            paragraph("The best of the measured sizes and token counts within each budget, by the law:"),
            table_html(
                rows,
                ["budget per query", "LLM", "V", "spent", "predicted error"],
                "The best choice of each budget",
            ),
            paragraph("Cost: 2N(Q + V), the LLM's prefill as the paper counts it.", "muted"),
        ],
    )


def _shape_section(table: ScoreTable, fit: Fit) -> Section:
    rings = " Rings mark scores that their source gives reason to doubt." if table.flagged else ""
    return Section(
        "How well the law holds",
        [
            _both(
                table,
                fit,
                figure_error_vs_tokens,
                "Error against visual tokens for each LLM size",
                "Measured errors and the fitted law, one colour for each LLM size.",
            ),
            _both(
                table,
                fit,
                figure_residuals,
                "Measured minus fitted error of every cell",
                "What the law leaves over. The band is one root mean square." + rings,
            ),
        ],
    )


def _profile_section(fit: Fit, trust: Uncertainty) -> Section:
    caption = (
        "Each constant imposed and the others refitted: how much worse the fit gets, in units of the "
        "variance of one score. The dot is the fit, the band the 95 % interval, the dashed line the loss "
        "that ends it where no bound is near."
    )
    light, dark = figure_in_both(figure_profiles(fit, trust.profiles))
    figure = figure_html(light, dark, "Profile likelihood of every constant", caption)
    return Section("How well each constant is known", [figure])


def _scores_section(table: ScoreTable, fit: Fit) -> Section:
    def cell(score: float) -> str:
        return "–" if math.isnan(score) else f"{100 * score:.2f}"

    rows: list[list[str]] = []
    for n, row in zip(table.params_b, table.score, strict=True):
        rows.append([size_name(n), *map(cell, row)])
        rows.append(["by the law", *map(cell, 1 - fit.law.error(n, table.visual_tokens))])
    header = ["score, %", *(f"V = {v:g}" for v in table.visual_tokens)]
    fragments = [table_html(rows, header, "Scores, measured and by the law")]
    if table.flagged:
        fragments.append(
            bullets(f"{size_name(f.params_b)}, V = {f.visual_tokens:g}: {f.reason}." for f in table.flagged)
        )
    if table.source:
        fragments.append(paragraph(f"Source: {table.source}.", "muted"))
    return Section("Scores", fragments)


def _checks_section(fit: Fit, trust: Uncertainty, others: Mapping[str, Fit] | None) -> Section:
    said = [
        f"{fit.n_agreeing} of {fit.n_starts} starts reached this optimum"
        f" ({fit.iterations} steps from the best one)."
    ]
    if fit.method == "grid":
        said = [f"All {fit.n_starts:,} points of the published grid were compared."]
    if fit.cross_check is not None:
        what = (
            "Variable projection, an independent search,"
            if fit.method == "starts"
            else "Between its points, least squares"
        )
        said.append(f"{what} finds an objective of {fit.cross_check.sse:.4e}, against {fit.objective:.4e}.")
    if trust.lack_of_fit is not None:
        said.append(lack_of_fit_text(trust.lack_of_fit))
    if fit.bounds_hit:
        said.append(f"On a bound of the box: {', '.join(fit.bounds_hit)}.")
    fragments = [bullets(said)]
    if others:
        fragments += [
            paragraph("The same scores under other assumptions:"),
            rivals_html(others, "Fits under other assumptions"),
        ]
    return Section("Checks", fragments)


def _both(table: ScoreTable, fit: Fit, draw: Callable[..., Figure], alt: str, caption: str) -> str:
    light, dark = figure_in_both(draw(table, fit), len(table.params_b))
    return figure_html(light, dark, alt, caption)
