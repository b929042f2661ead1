"""The sections of a fit's page on what the law is worth: unseen scores, rival laws, influence."""

import math
from collections.abc import Mapping

from quecc_jax.pages.numbers import size_name
from quecc_jax.pages.page import Section, bullets, paragraph, table_html
from scaling.diagnostics.summary import Diagnostics, cell_name, diagnostics_findings, points_text
from scaling.fit import Fit
from scaling.table import ScoreTable

_SHOWN = 8
"""Cells listed on the page by falling influence; the record holds all."""


def diagnostics_sections(table: ScoreTable, fit: Fit, seen: Diagnostics) -> list[Section]:
    """The page's sections: predictions, rival laws, influence."""
    sections = [_unseen(seen), _rivals(seen)]
    if seen.influences:
        sections.append(_influence(table, fit, seen))
    findings = diagnostics_findings(table, seen)
    if findings:
        sections.insert(0, Section("What to know before relying on it", [bullets(findings)]))
    return sections


def _unseen(seen: Diagnostics) -> Section:
    rows = []
    for each in seen.hold_outs:
        name = size_name(each.value) if each.axis == "params_b" else f"V = {each.value:g}"
        kind = "beyond the rest" if each.is_extrapolation else "between the rest"
        rows.append(
            [
                name,
                kind,
                each.n_points,
                points_text(each.rmse),
                points_text(each.bias, "+"),
                points_text(each.worst, "+"),
                f"{100 * each.worst_share:.1f} %",
            ]
        )
    header = ["left out", "where it lies", "scores", "rms miss", "mean miss", "worst", "worst / error"]
    fragments = [
        paragraph(
            "Each size and each token count is left out, the law fitted to the rest, and its "
            "prediction compared; a positive miss is too pessimistic."
        ),
        table_html(rows, header, "Misses of what was left out")
        if rows
        else paragraph("There are too few cells to leave some out."),
    ]
    for ahead in seen.predictions:
        cells = zip(ahead.visual_tokens, ahead.score, ahead.low, ahead.high, strict=True)
        fragments += [
            paragraph(
                f"Scores predicted for {size_name(ahead.params_b)}, with the 95 % interval of a new "
                "measurement, if the law holds that far:"
            ),
            table_html(
                [
                    [f"{v:g}", f"{100 * s:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"]
                    for v, s, low, high in cells
                ],
                ["V", "score, %", "interval"],
                f"Scores predicted for {size_name(ahead.params_b)}",
            ),
        ]
    return Section("Scores it has not seen", fragments)


def _rivals(seen: Diagnostics) -> Section:
    best = seen.rivals[0].aicc
    rows = [
        [
            rival.name,
            rival.formula,
            rival.n_parameters,
            f"{rival.sse:.4e}",
            f"+{rival.aicc - best:.1f}" if math.isfinite(rival.aicc) else "–",
            f"{100 * rival.weight:.0f} %",
        ]
        for rival in seen.rivals
    ]
    explained = "AICc rewards fit and charges for constants; 2 apart is weak evidence, 10 is strong."
    header = ["law", "error =", "constants", "SSE", "AICc", "weight"]
    return Section("Rival laws", [table_html(rows, header, "Rival laws"), paragraph(explained, "muted")])


def _influence(table: ScoreTable, fit: Fit, seen: Diagnostics) -> Section:
    doubtful: Mapping[tuple[float, float], str] = {
        (flag.params_b, flag.visual_tokens): "doubtful" for flag in table.flagged
    }
    ranked = list(enumerate(seen.influences, 1))
    shown = ranked[:_SHOWN] + [
        entry for entry in ranked[_SHOWN:] if (entry[1].params_b, entry[1].visual_tokens) in doubtful
    ]
    rows = [
        [
            rank,
            cell_name(cell),
            f"{cell.cook:.2f}",
            f"{cell.params.alpha:.4g}",
            f"{cell.params.beta:.4g}",
            f"{cell.params.D:.3g}",
            f"{cell.best_count:.3g}",
            doubtful.get((cell.params_b, cell.visual_tokens), ""),
        ]
        for rank, cell in shown
    ]
    p = fit.law.params
    explained = (
        "The law without each score, by Cook's distance; "
        f"with all, alpha is {p.alpha:.4g} and beta {p.beta:.4g}."
    )
    header = ["rank", "without", "distance", "alpha", "beta", "D", "best V", "remark"]
    return Section(
        "Influence of single scores",
        [paragraph(explained), table_html(rows, header, "Fits without one score")],
    )
