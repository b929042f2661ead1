"""Figures of a grid: accuracy, query ablation, losses.

Each returns a matplotlib Figure in the "light" or "dark" style of the law's figures, drawn for a
width of 700 pixels; nothing touches global state.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from quecc_jax.experiments import stats
from quecc_jax.experiments.results import Curve, Results
from quecc_jax.experiments.stats import Score
from quecc_jax.pages.style import DPI, THEMES, Style, Theme, dress

_MARKERS = "osD^vPX*<>hd"
_DASHES = (0, (4, 3))
_PLAIN_NUMBER = FuncFormatter(lambda x, _: f"{x:g}")

Look = dict[str, Any]
"""Colour and marker of a line, as matplotlib takes them."""


def accuracy_figure(results: Results, style: Style = "light") -> Figure:
    """Accuracy against V, a panel per task and a line per decoder; dashes: the question-only models."""
    theme, tasks, counts = THEMES[style], stats.tasks(results["rows"]), results["visual_tokens"]
    names = [llm["name"] for llm in stats.by_size(results)]
    looks = _looks(names, theme.colours(len(names)))
    shifts = dict(zip(names, np.exp(np.linspace(-1, 1, len(names)) * 0.07 * (len(names) > 1)), strict=True))
    figure, panels = _panels(theme, tasks, min(len(tasks), 3), 3.0)
    for axes, task in zip(panels, tasks, strict=True):
        without = stats.baseline(results["rows"], task)
        _lines(axes, looks, stats.scores(results["rows"], task), lambda name, v, _: v * shifts[name])
        for name in filter(without.__contains__, names):
            level = 100 * without[name].mean
            axes.axhline(level, color=looks[name]["color"], lw=1.2, ls=_DASHES, zorder=1)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(v) for v in counts])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("visual tokens V")
    panels[0].set_ylabel("right answers (%)")
    blind = Line2D([], [], color=theme.muted, lw=1.2, ls=_DASHES, label="question only, no image")
    _legend(figure, theme, [*_handles(looks), blind])
    return figure


def flops_figure(results: Results, style: Style = "light") -> Figure:
    """Accuracy against FLOPs of an answer, a panel per task, a line per compressor through its V."""
    theme, tasks = THEMES[style], stats.tasks(results["rows"])
    labels = stats.compressors(results["rows"], "comparison")
    colours = theme.colours(max(len(labels) - 1, 1))
    looks = _looks(labels, [*colours, colours[-1]])
    if results["own"] in looks:
        looks[results["own"]].update(color=theme.accent, zorder=4)
    figure, panels = _panels(theme, tasks, 1, 2.9)
    for axes, task in zip(panels, tasks, strict=True):
        found = stats.scores(results["rows"], task, "compressor", "comparison")
        _lines(axes, looks, found, lambda _name, _v, score: (score.flops or np.nan) / 1e6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_PLAIN_NUMBER)
        axes.xaxis.set_minor_formatter(NullFormatter())
        ticks = np.unique(np.round(np.geomspace(*axes.get_xlim(), 6)[1:-1]))
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_ylabel("right answers (%)")
    panels[-1].set_xlabel("MFLOPs of an answer, tower included")
    _legend(figure, theme, _handles(looks), columns=4)
    return figure


def ablation_figure(results: Results, style: Style = "light") -> Figure:
    """One row per pair of models: zeros in the compressor (hollow) to the real question (filled)."""
    theme = THEMES[style]
    pairs, without = stats.ablation(results["rows"]), stats.baseline(results["rows"], stats.CELL_KIND)
    figure, (axes,) = _panels(theme, [""], 1, 1.5 + 0.42 * len(pairs))
    dot: Look = {"marker": "o", "ls": "none", "ms": 9, "color": theme.accent, "mew": 1.8}
    dash: Look = {"marker": "|", "ls": "none", "color": theme.ink, "mew": 1.8}
    for y, pair in enumerate(pairs):
        ends = [100 * pair.zero.mean, 100 * pair.question.mean]
        axes.plot(ends, [y, y], color=theme.accent, lw=3, alpha=0.35)
        for score, face in ((pair.zero, theme.paper), (pair.question, theme.accent)):
            error = 100 * score.stderr
            axes.errorbar(100 * score.mean, y, xerr=error, mfc=face, elinewidth=1.2, zorder=3, **dot)
        if pair.llm in without:
            axes.plot(100 * without[pair.llm].mean, y, ms=16, zorder=2, **dash)
    axes.set_yticks(range(len(pairs)), [f"{p.llm}, V = {p.visual_tokens}, seed {p.seed}" for p in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.set_xlabel("right answers to questions about one cell (%)")
    axes.grid(visible=False, axis="y")
    zeros = Line2D([], [], **dot, mfc=theme.paper, label="zeros instead of the question")
    asked, blind = (
        Line2D([], [], **dot, label="the question"),
        Line2D([], [], **dash, ms=14, label="no image"),
    )
    _legend(figure, theme, [zeros, asked, blind])
    return figure


def loss_figure(results: Results, style: Style = "light") -> Figure:
    """Training loss of both stages, end to end, a panel per decoder and a line per V; then the tower's.

    Mean over seeds, smoothed by a running mean over a fortieth of the logged points.
    """
    theme, counts = THEMES[style], results["visual_tokens"]
    names, colours = [llm["name"] for llm in stats.by_size(results)], theme.colours(len(counts))
    tower = results["steps"].get("tower", {}).get("loss")
    titles = [f"decoder {name}" for name in names] + ["vision tower"] * bool(tower)
    figure, panels = _panels(theme, titles, 2, 2.5)
    for axes, name in zip(panels, names, strict=False):
        for v, colour in zip(counts, colours, strict=True):
            wanted = (name, v, "question")
            rows = [r for r in results["rows"] if (r["llm"], r["visual_tokens"], r["query"]) == wanted]
            cells = dict.fromkeys(row["cell"] for row in rows)
            _draw_stages(axes, theme, colour, [results["losses"][cell] for cell in cells])
    if tower:
        steps, losses = np.array(tower, np.float64).T
        panels[-1].plot(steps, _smooth(losses), color=theme.accent, lw=1.6)
    for axes in panels:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(_PLAIN_NUMBER)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
    lines = [
        Line2D([], [], color=colour, lw=2.4, label=str(v)) for v, colour in zip(counts, colours, strict=True)
    ]
    _legend(figure, theme, [Line2D([], [], ls="none", label="V ="), *lines])
    return figure


def _draw_stages(axes: Axes, theme: Theme, colour: Any, runs: Sequence[Mapping[str, Curve]]) -> None:
    start = 0.0
    for i, stage in enumerate(sorted({stage for run in runs for stage in run})):
        curves = [np.array(run[stage], np.float64) for run in runs if run.get(stage)]
        if not curves:
            continue
        shared = min(len(curve) for curve in curves)
        steps, losses = np.mean([curve[:shared] for curve in curves], axis=0).T
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


def _looks(names: Sequence[str], colours: Sequence[Any]) -> dict[str, Look]:
    return {
        name: {"color": colours[i], "marker": _MARKERS[i % len(_MARKERS)], "ms": 5.5, "lw": 1.6}
        for i, name in enumerate(names)
    }


def _lines(
    axes: Axes,
    looks: Mapping[str, Look],
    found: Mapping[tuple[str, int], Score],
    x: Callable[[str, int, Score], float],
) -> None:
    """A line through the scores of each name by ascending V, with standard errors."""
    for name, look in looks.items():
        mine = sorted((v, score) for (one, v), score in found.items() if one == name)
        axes.errorbar(
            [x(name, v, score) for v, score in mine],
            [100 * score.mean for _, score in mine],
            yerr=[100 * score.stderr for _, score in mine],
            elinewidth=1.2,
            **{"zorder": 3, **look},
        )


def _handles(looks: Mapping[str, Look]) -> list[Line2D]:
    return [Line2D([], [], label=name, **look) for name, look in looks.items()]


def _panels(theme: Theme, titles: Sequence[str], columns: int, height: float) -> tuple[Figure, list[Axes]]:
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(7, 0.3 + height * rows), dpi=DPI, facecolor=theme.paper, layout="constrained")
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(len(titles))]
    for axes, title in zip(panels, titles, strict=True):
        dress(axes, theme, 10)
        axes.set_title(title, color=theme.ink, fontsize=12, fontweight="bold", loc="left")
    return figure, panels


def _legend(figure: Figure, theme: Theme, handles: list[Line2D], columns: int = 0) -> None:
    figure.legend(
        handles=handles,
        ncols=columns or len(handles),
        loc="outside upper left",
        frameon=False,
        fontsize=11,
        labelcolor=theme.ink,
        columnspacing=1.4,
        handletextpad=0.6,
    )
