"""Figures of a grid of decoders and V: accuracy, query ablation, losses.

Each returns a matplotlib Figure in the "light" or "dark" style of the law's figures, drawn for a
width of 700 pixels; nothing touches global state.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from quecc_jax.experiments import stats
from quecc_jax.experiments.stats import Results
from quecc_jax.pages.style import DPI, THEMES, Style, Theme, dress

_MARKERS = "osD^vPX*"


def figure_accuracy(results: Results, style: Style = "light") -> Figure:
    """Accuracy against V, a panel per task and a line per decoder; dashes: the question-only models."""
    theme = THEMES[style]
    tasks, names, counts = stats.tasks(results["rows"]), _names(results), results["visual_tokens"]
    figure, panels = _panels(theme, len(tasks), min(len(tasks), 3), 3.0)
    colours = theme.colours(len(names))
    shifts = np.exp(np.linspace(-1, 1, len(names)) * 0.07) if len(names) > 1 else [1.0]
    for axes, task in zip(panels, tasks, strict=True):
        scores, without = stats.grid(results["rows"], task), stats.baseline(results["rows"], task)
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
    handles.append(Line2D([], [], color=theme.muted, lw=1.2, ls=(0, (4, 3)), label="question only, no image"))
    _legend(figure, theme, handles)
    return figure


def figure_ablation(results: Results, style: Style = "light") -> Figure:
    """One row per pair of models: zeros in the compressor (hollow) to the real question (filled)."""
    theme = THEMES[style]
    pairs, without = stats.ablation(results["rows"]), stats.baseline(results["rows"], stats.CELL_KIND)
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
        if pair.llm in without:
            axes.plot(without[pair.llm].mean * 100, y, "|", color=theme.ink, ms=16, mew=1.8, zorder=2)
    axes.set_yticks(range(len(pairs)), [f"{p.llm}, V = {p.visual_tokens}, seed {p.seed}" for p in pairs])
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
            Line2D([], [], marker="|", ls="none", color=theme.ink, ms=14, mew=1.8, label="no image"),
        ],
    )
    return figure


def figure_losses(results: Results, style: Style = "light") -> Figure:
    """Training loss of both stages, end to end, a panel per decoder and a line per V; then the tower's.

    Mean over seeds, smoothed by a running mean over a fortieth of the logged points.
    """
    theme = THEMES[style]
    names, counts = _names(results), results["visual_tokens"]
    tower = results["steps"].get("tower", {}).get("loss")
    figure, panels = _panels(theme, len(names) + bool(tower), 2, 2.5)
    for axes, name in zip(panels, names, strict=False):
        for v, colour in zip(counts, theme.colours(len(counts)), strict=True):
            _draw_stages(
                axes,
                theme,
                colour,
                [results["losses"][cell] for cell in stats.cells(results["rows"], name, v)],
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
    return [llm["name"] for llm in sorted(results["llms"], key=lambda llm: llm["params"])]


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
