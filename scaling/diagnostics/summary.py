"""All diagnostics of a fit, their record in fit.json and what they say in plain sentences."""

import dataclasses
import math
from collections.abc import Sequence

from quecc_jax.pages.numbers import size_name
from scaling.diagnostics.assess import Uncertainty
from scaling.diagnostics.holdout import HoldOut, Influence, Prediction, hold_out, influence, predict
from scaling.diagnostics.rivals import RivalFit, compare
from scaling.fit import Fit
from scaling.formatting import Record
from scaling.table import ScoreTable


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """What the law predicts unseen, what else fits, and which scores carry it."""

    hold_outs: list[HoldOut]
    predictions: list[Prediction]
    rivals: list[RivalFit]
    influences: list[Influence]


def diagnose(
    table: ScoreTable, fit: Fit, trust: Uncertainty, sizes: Sequence[float], seed: int = 0
) -> Diagnostics:
    """All of it; predictions for `sizes` (billions) where intervals can be had."""
    samples = trust.samples
    can = fit.n_points > fit.n_parameters and (samples is not None or fit.loss != "huber")
    predictions = [predict(table, fit, samples, n, seed=seed) for n in sizes] if can else []
    return Diagnostics(hold_out(table, fit), predictions, compare(table, fit, seed), influence(table, fit))


def diagnostics_record(seen: Diagnostics) -> Record:
    """What fit.json holds of it; plain JSON values."""
    return {
        "hold_out": [_plain(each._asdict()) for each in seen.hold_outs],
        "predictions": [_plain(each._asdict()) for each in seen.predictions],
        "rival_laws": [_plain(each._asdict()) for each in seen.rivals],
        "influence": [_plain(each._asdict()) for each in seen.influences],
    }


def diagnostics_findings(table: ScoreTable, seen: Diagnostics) -> list[str]:
    """Plain sentences on the largest size held out, the best rival, and influential or doubtful cells."""
    said = []
    sizes = [each for each in seen.hold_outs if each.axis == "params_b"]
    if sizes:
        last = sizes[-1]
        said.append(
            f"Fitted without the {size_name(last.value)} scores, the law misses them by {points_text(last.rmse)} "
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
        names = ", ".join(cell_name(cell) for cell in heavy)
        said.append(f"Single scores that move the law by more than its own uncertainty: {names}.")
    doubtful = {(flag.params_b, flag.visual_tokens) for flag in table.flagged}
    for rank, cell in enumerate(seen.influences, 1):
        if (cell.params_b, cell.visual_tokens) in doubtful:
            said.append(
                f"The doubtful score at {cell_name(cell)} ranks {rank} of {len(seen.influences)} by "
                f"influence; without it alpha is {cell.params.alpha:.4g} and beta {cell.params.beta:.4g}."
            )
    return said


def points_text(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f} points"


def cell_name(cell: Influence) -> str:
    return f"{size_name(cell.params_b)}, V = {cell.visual_tokens:g}"


def _plain(record: Record) -> Record:
    """Arrays as lists, named tuples as objects, numbers that JSON lacks as null."""

    def plain(value: object) -> object:
        if hasattr(value, "_asdict"):
            return _plain(value._asdict())
        if hasattr(value, "tolist"):
            value = value.tolist()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: plain(value) for key, value in record.items()}
