"""What must be said of a plan whose efficiencies were measured: where, and how far they are carried."""

from collections.abc import Sequence

import msgspec
import numpy as np

from scaling.cost import PAPERS_COMPRESSOR, PARTS, Lengths, Setup
from scaling.efficiency.measured import Beyond
from scaling.formatting import Record
from scaling.planner import Options, Plan

_LISTED = 4
"""Most lengths that are named one by one."""


def used_parts(options: Options) -> list[str]:
    """Parts that take time in any choice."""
    return [part for part in PARTS if np.any(options.seconds[part])]


def outside(plan: Plan, lengths: Lengths, setup: Setup) -> list[Beyond]:
    """Where the plan takes the nearest measured efficiency for want of measured ones around it."""
    assert setup.measured is not None
    prompts = (lengths.text + plan.options.visual_tokens).tolist()
    return setup.measured.beyond(setup.batch, prompts)


def shares_reached(options: Options, index: int) -> dict[str, float]:
    """The efficiency of each part of one choice that takes time there."""
    return {
        part: float(options.seconds_at_peaks[part][index] / options.seconds[part][index])
        for part in PARTS
        if options.seconds[part][index]
    }


def measured_notes(plan: Plan, lengths: Lengths, setup: Setup) -> list[str]:
    """Sentences for people; none without a measured engine."""
    measured, options = setup.measured, plan.options
    if measured is None:
        return []
    chip, model = measured.chip, measured.model
    said = [
        f"Efficiencies were measured on {chip.name} ({_figures(chip.flops, chip.bandwidth)}; {chip.source}) with "
        f"{model}, and are carried over to the models and the chip of this plan: each part reaches the same share of "
        "that chip's peaks at the same batch and prompt length. Only a measurement of the planned model itself would "
        "show whether it does."
    ]
    if model.dtype != "bfloat16" or setup.weights != "bfloat16":
        kept = "" if setup.weights == "bfloat16" else f", and {setup.weights} for the decoder's matrices"
        said.append(
            f"The measured engine computed in {model.dtype}; this plan counts two bytes a number{kept}. An efficiency "
            "is a share of what the peaks allow in the engine's own type, so the share is carried over, and seconds of "
            "that engine are not."
        )
    parts = used_parts(options)
    if "query" in parts:
        said.append(
            "Of the encoder of the question one kind and one length were measured; its efficiency stands for every "
            "encoder and length."
        )
    if "compressor" in parts and setup.compressor != model.compressor:
        other = "" if setup.compressor == PAPERS_COMPRESSOR else f" {setup.compressor}"
        said.append(f"The efficiency of {model.compressor} stands for the compressor{other} of this plan.")
    said += [_beyond(one, plan, lengths) for one in outside(plan, lengths, setup)]
    above = [
        f"{part} up to {most:.3g}"
        for part in parts
        if (most := float(np.max(_ratio(options.seconds_at_peaks[part], options.seconds[part])))) > 1
    ]
    if above:
        said.append(
            f"Above the peaks: {', '.join(above)} of them. The peaks that it was measured against are too low for "
            "these, so that here the times at peaks are no bounds."
        )
    return said


def efficiency_record(plan: Plan, lengths: Lengths, setup: Setup) -> Record | None:
    """What plan.json says of a measured engine."""
    measured = setup.measured
    if measured is None:
        return None
    return {
        "file": measured.name,
        "chip": msgspec.to_builtins(measured.chip),
        "model": msgspec.to_builtins(measured.model),
        "of_recommendation": shares_reached(plan.options, plan.best),
        "outside": [one._asdict() | {"nearest": one.nearest} for one in outside(plan, lengths, setup)],
    }


def _beyond(one: Beyond, plan: Plan, lengths: Lengths) -> str:
    side = "below" if one.nearest == one.least else "above"
    known = f"{one.least} to {one.most}" if one.least < one.most else f"{one.least}"
    where = f"{side} the measured {known}"
    if one.what == "batch":
        return f"Batch {one.values[0]:g} lies {where}: the efficiencies of batch {one.nearest} are taken."
    here = lengths.text + float(plan.options.visual_tokens[plan.best]) in one.values
    return (
        f"Prompts of {_listed(one.values)} positions lie {where}: the efficiencies at {one.nearest} are taken, "
        f"{'for the recommended choice too' if here else 'not for the recommended choice'}."
    )


def _listed(values: Sequence[float]) -> str:
    if len(values) > _LISTED:
        return f"{values[0]:g} to {values[-1]:g} ({len(values)} lengths)"
    *most, last = (f"{value:g}" for value in values)
    return f"{', '.join(most)} and {last}" if most else last


def _figures(flops: float, bandwidth: float) -> str:
    return f"{flops / 1e12:.4g} TFLOP/s, {bandwidth / 1e9:.4g} GB/s"


def _ratio(at_peaks: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    return np.divide(at_peaks, seconds, out=np.zeros_like(seconds), where=seconds > 0)
