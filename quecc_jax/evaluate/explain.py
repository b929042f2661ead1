"""The image with the compressor's attention for two questions side by side."""

from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from quecc_jax.errors import UserError
from quecc_jax.evaluate.attention import own_squares, patch_map
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.paths import replacing


def look(engine: Engine, question: Question) -> np.ndarray:
    """Attention as `Engine.attention`. Raises UserError where the model has no compressor that attends."""
    weights = engine.attention(question)
    if weights is None:
        raise UserError("--explain needs a compressor that attends to the image; this model has none")
    return weights


def explain(engine: Engine, question: Question, other: str, limits: Limits, out: Path) -> None:
    """Draws the first image of a question under the attention for it and for another question, with both
    answers, and the difference of the two maps. Of several processes the first draws.

    A patch's number is its share of attention, the mean over visual tokens and heads, times the patches: 1 is
    as much as every patch would get from tokens that look nowhere in particular.

    Raises:
      UserError: the model has no compressor that attends, or the file cannot be written.
    """
    questions = [question, question._replace(text=other)]
    weights = [look(engine, one) for one in questions]
    answers = [engine.answers([one], limits)[0] for one in questions]
    if jax.process_index():
        return
    maps = [patch_map(one[0]) for one in weights]
    region = len(maps[0]) // own_squares(weights[0][0])
    change = maps[0] - maps[1]
    pixels, side = engine.image(question.images[0]).pixels[0], maps[0].shape[0]
    vision = engine.config.model.vision
    seen = vision.grid * vision.patch_size * vision.scales[-1]
    pixels = pixels[:seen, :seen]
    where = (-0.5, side - 0.5, side - 0.5, -0.5)

    figure = Figure(figsize=(15, 4.9), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=(1, 0.05))
    panels = [figure.add_subplot(grid[0, column]) for column in range(4)]
    panels[0].imshow(pixels, extent=where)
    panels[0].set_title("the image,\nas the tower sees it", fontsize=10)
    top, most = max(m.max() for m in maps), max(float(np.abs(change).max()), 1e-6)
    for panel, one, answer, shown in zip(panels[1:], questions, answers, maps, strict=False):
        drawn = _overlay(panel, pixels, shown, region, ("inferno", 0, top))
        panel.set_title(f"{_short(one.text)}\n→ {_short(answer)}", fontsize=10)
    changed = _overlay(panels[3], pixels, change, region, ("RdBu_r", -most, most))
    panels[3].set_title("first minus second\n", fontsize=10)
    for cell, drawing, label in (
        (grid[1, 1:3], drawn, "attention (1: as if it looked nowhere)"),
        (grid[1, 3], changed, "difference"),
    ):
        bar = figure.colorbar(drawing, cax=figure.add_subplot(cell), orientation="horizontal", label=label)
        bar.locator = MaxNLocator(5)
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
    try:
        with replacing(out) as aside:
            figure.savefig(aside, format="png", dpi=110, bbox_inches="tight")
    except OSError as error:
        raise UserError(f"--explain {out} cannot be written ({error.strerror}); choose another") from None


def _overlay(
    panel: Axes, pixels: np.ndarray, shown: np.ndarray, region: int, colours: tuple[str, float, float]
) -> AxesImage:
    """A map over the greyed image, with lines between the squares of visual tokens that have their own."""
    side = shown.shape[0]
    where, (name, low, high) = (-0.5, side - 0.5, side - 0.5, -0.5), colours
    panel.imshow(pixels.mean(axis=-1), cmap="gray", extent=where, vmin=0, vmax=255)
    for line in np.arange(region, side, region) - 0.5:
        panel.axhline(line, color="white", lw=0.8)
        panel.axvline(line, color="white", lw=0.8)
    return panel.imshow(shown, cmap=name, extent=where, vmin=low, vmax=high, alpha=0.65)


def _short(text: str, width: int = 44) -> str:
    """A line of a title: dollar signs would begin a formula."""
    line = " ".join(text.split()).replace("$", r"\$") or "(nothing)"
    return line if len(line) <= width else line[: width - 1] + "…"
