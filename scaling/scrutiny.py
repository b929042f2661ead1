"""A law under scrutiny: extrapolation, rival laws and the influence of single scores, in words."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from quecc_jax.pages.page import Section, bullets, paragraph, table_html
from scaling.fit import Fit
from scaling.formatting import size_name
from scaling.holdout import HoldOut, Influence, Prediction, hold_out, influence, predict
from scaling.rivals import RivalFit, compare
from scaling.table import ScoreTable
from scaling.uncertainty import Uncertainty

_SHOWN = 8
"""Cells listed on the page by falling influence; the record holds all."""


@dataclasses.dataclass(frozen=True)
class Scrutiny:
    """What the law predicts unseen, what else fits, and which scores carry it."""

    hold_outs: list[HoldOut]
    predictions: list[Prediction]
    rivals: list[RivalFit]
    influences: list[Influence]


def scrutinise(
    table: ScoreTable, fit: Fit, trust: Uncertainty, sizes: Sequence[float], seed: int = 0
) -> Scrutiny:
    """Everything above; predictions for `sizes` (billions) where intervals can be had."""
    samples = trust.samples
    can = fit.n_points > fit.n_parameters and (samples is not None or fit.loss != "huber")
    predictions = [predict(table, fit, samples, n, seed=seed) for n in sizes] if can else []
    return Scrutiny(hold_out(table, fit), predictions, compare(table, fit, seed), influence(table, fit))


def scrutiny_record(seen: Scrutiny) -> dict[str, Any]:
    """What fit.json holds of it; plain JSON values."""
    return {
        "hold_out": [_plain(each._asdict()) for each in seen.hold_outs],
        "predictions": [_plain(each._asdict()) for each in seen.predictions],
        "rival_laws": [_plain(each._asdict()) for each in seen.rivals],
        "influence": [_plain(each._asdict()) for each in seen.influences],
    }


def scrutiny_findings(table: ScoreTable, seen: Scrutiny) -> list[str]:
    """Plain sentences on the largest size held out, the best rival, and influential or doubtful cells."""
    said = []
    sizes = [each for each in seen.hold_outs if each.axis == "params_b"]
    if sizes:
        last = sizes[-1]
        said.append(
            f"Fitted without the {size_name(last.value)} scores, the law misses them by {_points(last.rmse)} "
            f"(root mean square) and by {100 * last.worst_share:.1f} % of the error at worst."
        )
    by_name = {rival.name: rival for rival in seen.rivals}
    best, law = seen.rivals[0], by_name.get("product")
    if law is not None and math.isfinite(best.aicc) and best.name not in ("product", "no floor"):
        own = min(r.aicc for r in (law, by_name["no floor"]))
        ahead = own - best.aicc
        strength = "far better than" if ahead > 10 else "better than" if ahead > 2 else "about as well as"
        said.append(
            f"By AICc the {best.name} law ({best.formula}) describes these scores {strength} the product law "
            f"(by {ahead:.1f})."
        )
    heavy = [cell for cell in seen.influences if cell.cook > 1]
    if heavy:
        names = ", ".join(_cell_name(cell) for cell in heavy)
        said.append(f"Single scores that move the law by more than its own uncertainty: {names}.")
    doubtful = {(flag.params_b, flag.visual_tokens) for flag in table.flagged}
    for rank, cell in enumerate(seen.influences, 1):
        if (cell.params_b, cell.visual_tokens) in doubtful:
            said.append(
                f"The doubtful score at {_cell_name(cell)} ranks {rank} of {len(seen.influences)} by "
                f"influence; without it alpha is {cell.params.alpha:.4g} and beta {cell.params.beta:.4g}."
            )
    return said


def scrutiny_sections(table: ScoreTable, fit: Fit, seen: Scrutiny) -> list[Section]:
    """The page's sections: predictions, rival laws, influence."""
    sections = [_unseen(seen), _rivals(seen)]
    if seen.influences:
        sections.append(_influence(table, fit, seen))
    findings = scrutiny_findings(table, seen)
    if findings:
        sections.insert(0, Section("What to know before relying on it", [bullets(findings)]))
    return sections


def _unseen(seen: Scrutiny) -> Section:
    rows = []
    for each in seen.hold_outs:
        name = size_name(each.value) if each.axis == "params_b" else f"V = {each.value:g}"
        kind = "beyond the rest" if each.is_extrapolation else "between the rest"
        rows.append(
            [
                name,
                kind,
                each.n_points,
                _points(each.rmse),
                _points(each.bias, "+"),
                _points(each.worst, "+"),
                f"{100 * each.worst_share:.1f} %",
            ]
        )
    header = ["left out", "", "scores", "rms miss", "mean miss", "worst", "worst / error"]
    fragments = [
        paragraph(
            "Each size and each token count is left out, the law fitted to the rest, and its "
            "prediction compared; a positive miss is too pessimistic."
        ),
        table_html(rows, header) if rows else paragraph("There are too few cells to leave some out."),
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
            ),
        ]
    return Section("Scores it has not seen", fragments)


def _rivals(seen: Scrutiny) -> Section:
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
    return Section("Rival laws", [table_html(rows, header), paragraph(explained, "muted")])


def _influence(table: ScoreTable, fit: Fit, seen: Scrutiny) -> Section:
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
            _cell_name(cell),
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
    header = ["rank", "without", "distance", "alpha", "beta", "D", "best V", ""]
    return Section("Influence of single scores", [paragraph(explained), table_html(rows, header)])


def _points(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f} points"


def _cell_name(cell: Influence) -> str:
    return f"{size_name(cell.params_b)}, V = {cell.visual_tokens:g}"


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Arrays as lists, named tuples as objects, numbers that JSON lacks as null."""

    def plain(value: Any) -> Any:
        if hasattr(value, "_asdict"):
            return _plain(value._asdict())
        if hasattr(value, "tolist"):
            value = value.tolist()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: plain(value) for key, value in record.items()}
