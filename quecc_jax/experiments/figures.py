"""Figures of a grid run that the scaling package does not have: accuracy, query ablation, losses.

Each returns a matplotlib Figure in the "light" or "dark" style of the law's figures, drawn for a
width of 700 pixels; nothing touches global state.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from quecc_jax.experiments import summary
from quecc_jax.experiments.summary import Results
from quecc_jax.pages.page import figure_html, write_atomically
from quecc_jax.pages.style import DPI, THEMES, Style, Theme, dress
from scaling.report.plot import figure_to_png, figure_to_svg

_MARKERS = "osD^vPX*"


def figure_accuracy(results: Results, style: Style = "light") -> Figure:
    """Accuracy against V, a panel per task and a line per decoder; dashes: the question-only models."""
    theme = THEMES[style]
    tasks, names, counts = results["tasks"], _names(results), results["visual_tokens"]
    figure, panels = _panels(theme, len(tasks), min(len(tasks), 3), 3.0)
    colours = theme.colours(len(names))
    shifts = np.exp(np.linspace(-1, 1, len(names)) * 0.07) if len(names) > 1 else [1.0]
    for axes, task in zip(panels, tasks, strict=True):
        scores, without = summary.grid(results, task), summary.baseline(results, task)
        for name, colour, shift, marker in zip(names, colours, shifts, _MARKERS, strict=False):
            known = [v for v in counts if (name, v) in scores]
            cells = [scores[name, v] for v in known]
            axes.errorbar(
                np.array(known) * shift,
                [s.mean * 100 for s in cells],
                yerr=[s.stderr * 100 for s in cells],
                color=colour,
                marker=marker,
                ms=5.5,
                lw=1.8,
                elinewidth=1.2,
                label=name,
                zorder=3,
            )
            if name in without:
                axes.axhline(without[name].mean * 100, color=colour, lw=1.2, ls=(0, (4, 3)), zorder=1)
        axes.set_title(task, color=theme.ink, fontsize=12, fontweight="bold", loc="left")
        _token_axis(axes, counts)
    panels[0].set_ylabel("right answers (%)")
    handles = [
        Line2D([], [], color=colour, marker=marker, ms=5.5, lw=1.8, label=name)
        for name, colour, marker in zip(names, colours, _MARKERS, strict=False)
    ]
    handles.append(
        Line2D([], [], color=theme.muted, lw=1.2, ls=(0, (4, 3)), label="question only, no picture")
    )
    _legend(figure, theme, handles)
    return figure


def figure_ablation(results: Results, style: Style = "light") -> Figure:
    """One row per pair of models: zeros in the compressor (hollow) to the real question (filled)."""
    theme = THEMES[style]
    pairs, without = summary.ablation(results), summary.baseline(results, summary.CELL_KIND)
    figure, (axes,) = _panels(theme, 1, 1, 1.5 + 0.42 * len(pairs))
    for y, pair in enumerate(pairs):
        axes.plot(
            [pair.zero.mean * 100, pair.question.mean * 100], [y, y], color=theme.accent, lw=3, alpha=0.35
        )
        for score, face in ((pair.zero, theme.paper), (pair.question, theme.accent)):
            axes.errorbar(
                score.mean * 100,
                y,
                xerr=score.stderr * 100,
                fmt="o",
                ms=9,
                color=theme.accent,
                mfc=face,
                mew=1.8,
                elinewidth=1.2,
                zorder=3,
            )
        if pair.decoder in without:
            axes.plot(without[pair.decoder].mean * 100, y, "|", color=theme.ink, ms=16, mew=1.8, zorder=2)
    axes.set_yticks(range(len(pairs)), [f"{p.decoder}, V = {p.visual_tokens}, seed {p.seed}" for p in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlabel("right answers to questions about one cell (%)")
    axes.grid(visible=False, axis="y")
    marker: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 9, "color": theme.accent, "mew": 1.8}
    _legend(
        figure,
        theme,
        [
            Line2D([], [], **marker, mfc=theme.paper, label="zeros instead of the question"),
            Line2D([], [], **marker, label="the question"),
            Line2D([], [], marker="|", ls="none", color=theme.ink, ms=14, mew=1.8, label="no picture"),
        ],
    )
    return figure


def figure_losses(results: Results, style: Style = "light") -> Figure:
    """Training loss of both stages, end to end, a panel per decoder and a line per V; then the tower's.

    Mean over seeds, smoothed by a running mean over a fortieth of the logged points.
    """
    theme = THEMES[style]
    names, counts = _names(results), results["visual_tokens"]
    tower = results.get("tower", {}).get("loss")
    figure, panels = _panels(theme, len(names) + bool(tower), 2, 2.5)
    for axes, name in zip(panels, names, strict=False):
        for v, colour in zip(counts, theme.colours(len(counts)), strict=True):
            _draw_stages(
                axes,
                theme,
                colour,
                [
                    cell["loss"]
                    for cell in results["cells"]
                    if (cell["decoder"], cell["visual_tokens"], cell["query"]) == (name, v, "question")
                ],
            )
        axes.set_title(f"decoder {name}", color=theme.ink, fontsize=12, fontweight="bold", loc="left")
    if tower:
        steps, losses = np.array(tower, np.float64).T
        panels[len(names)].plot(steps, _smooth(losses), color=theme.accent, lw=1.6)
        panels[len(names)].set_title(
            "vision tower", color=theme.ink, fontsize=12, fontweight="bold", loc="left"
        )
    for axes in panels:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
    _legend(
        figure,
        theme,
        [Line2D([], [], ls="none", label="V =")]
        + [
            Line2D([], [], color=colour, lw=2.4, label=str(v))
            for v, colour in zip(counts, theme.colours(len(counts)), strict=True)
        ],
    )
    return figure


def embed(out: Path, name: str, draw: Callable[[Style], Figure], alt: str, caption: str) -> str:
    """Both renderings as an HTML figure, written beside it as NAME.png and NAME-dark.png too."""
    light, dark = draw("light"), draw("dark")
    write_atomically(out / f"{name}.png", figure_to_png(light))
    write_atomically(out / f"{name}-dark.png", figure_to_png(dark))
    return figure_html(figure_to_svg(light), figure_to_svg(dark), alt, caption)


def _draw_stages(axes: Axes, theme: Theme, colour: Any, runs: Sequence[dict[str, Any]]) -> None:
    start = 0.0
    for i, stage in enumerate(sorted({stage for run in runs for stage in run})):
        curves = [np.array(run[stage], np.float64) for run in runs if run.get(stage)]
        if not curves:
            continue
        shared = min(len(curve) for curve in curves)
        steps = curves[0][:shared, 0]
        losses = np.mean([curve[:shared, 1] for curve in curves], axis=0)
        if i:
            axes.axvline(start, color=theme.muted, lw=1, ls=(0, (2, 3)), zorder=1)
        axes.plot(start + steps, _smooth(losses), color=colour, lw=1.5, zorder=2)
        start += steps[-1]


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a centred window that shrinks at the ends, so that nothing is shifted."""
    half = len(values) // 80
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def _names(results: Results) -> list[str]:
    return [d["name"] for d in sorted(results["decoders"], key=lambda decoder: decoder["params"])]


def _panels(theme: Theme, count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(7, 0.3 + height * rows), dpi=DPI, facecolor=theme.paper, layout="constrained")
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes in panels:
        dress(axes, theme, 10)
    return figure, panels


def _token_axis(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(counts), [str(v) for v in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("visual tokens V")


def _legend(figure: Figure, theme: Theme, handles: list[Line2D]) -> None:
    figure.legend(
        handles=handles,
        ncols=len(handles),
        loc="outside upper left",
        frameon=False,
        fontsize=11,
        labelcolor=theme.ink,
        columnspacing=1.4,
        handletextpad=0.6,
    )
