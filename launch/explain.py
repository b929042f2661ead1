"""The picture with the compressor's attention for two questions side by side."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quecc_jax.errors import UserError
from quecc_jax.evaluate.attention import patch_map

if TYPE_CHECKING:
    from quecc_jax.generate.engine import Engine, Limits, Question


def explain(engine: "Engine", question: "Question", other: str, limits: "Limits", out: Path) -> None:
    """Draws the first picture of a question under the attention for it and for another question, with both
    answers, and the difference of the two maps.

    A patch's number is its share of its visual token's attention, the mean over heads, times the patches
    that the token reads: 1 is as much as every patch would get from a token that looks nowhere.

    Raises:
      UserError: the model has no compressor that attends, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    questions = [question, question._replace(text=other)]
    weights = [engine.attention(one) for one in questions]
    if weights[0] is None or weights[1] is None:
        raise UserError("--explain needs a compressor that attends to the picture; this model has none")
    answers = [engine.answers([one], limits)[0] for one in questions]
    region = weights[0].shape[-1]
    maps = [patch_map(one[0]) * region**2 for one in weights if one is not None]
    change = maps[0] - maps[1]
    picture, side = question.pictures[0].array, maps[0].shape[0]
    where = (-0.5, side - 0.5, side - 0.5, -0.5)

    figure = Figure(figsize=(15, 5.6), layout="constrained")
    panels = figure.subplots(1, 4)
    panels[0].imshow(picture, extent=where)
    panels[0].set_title("the picture, as the tower sees it", fontsize=10)
    top, most = max(m.max() for m in maps), max(float(np.abs(change).max()), 1e-6)
    for panel, one, answer, shown in zip(panels[1:], questions, answers, maps, strict=False):
        drawn = _overlay(panel, picture, shown, where, "inferno", 0, top)
        panel.set_title(f"{_short(one.text)}\n→ {_short(answer)}", fontsize=10)
    figure.colorbar(drawn, ax=panels[1:3], location="bottom", shrink=0.6,
                    label="attention (1: as if it looked nowhere)")  # fmt: skip
    drawn = _overlay(panels[3], picture, change, where, "RdBu_r", -most, most)
    panels[3].set_title("first minus second", fontsize=10)
    figure.colorbar(drawn, ax=panels[3], location="bottom", shrink=0.8, label="difference")
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        figure.savefig(aside, format="png", dpi=110)
        os.replace(aside, out)
    except OSError as error:
        raise UserError(f"--explain {out} cannot be written ({error.strerror}); choose another") from None


def _overlay(panel, picture: np.ndarray, shown: np.ndarray, where, colours: str, low: float, high: float):  # type: ignore[no-untyped-def]
    """A map over the greyed picture, with lines between the squares of the visual tokens."""
    grey = picture.mean(axis=-1)
    panel.imshow(grey, cmap="gray", extent=where, vmin=0, vmax=255)
    return panel.imshow(shown, cmap=colours, extent=where, vmin=low, vmax=high, alpha=0.65)


def _short(text: str, width: int = 44) -> str:
    """A line of a title: dollar signs would begin a formula."""
    line = " ".join(text.split()).replace("$", r"\$") or "(nothing)"
    return line if len(line) <= width else line[: width - 1] + "…"
