"""Figures of a plan, in the same dress as those of a fit."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from scaling.cost import Kind
from scaling.plan import Plan, Regions
from scaling.plan_report import Question, amount
from scaling.plot import MARKERS, canvas, legend, legend_text, size_entries, token_colours, write_below
from scaling.style import THEMES, Style
from scaling.text import size_name

AXIS: dict[Kind, str] = {
    "flops": "FLOPs per query", "seconds": "time per batch", "usd": "dollars per million queries"
}  # fmt: skip


def figure_error_vs_cost(plan: Plan, asked: Question, style: Style = "light") -> Figure:
    """Predicted error of every choice against its cost, the frontier, the budget and what it buys.

    Hollow choices do not fit the machine's memory.
    """
    theme, o = THEMES[style], plan.options
    figure, axes = canvas(theme)
    best = plan.frontier
    axes.plot(o.cost[best], plan.error[best] * 100, drawstyle="steps-post", color=theme.accent, lw=7,
              alpha=0.32, solid_capstyle="round", zorder=1)  # fmt: skip
    sizes, counts = np.unique(o.params_b), np.unique(o.visual_tokens)
    for n, colour in zip(sizes, theme.colours(len(sizes)), strict=True):
        for llm in dict.fromkeys(name for name, size in zip(o.llms, o.params_b, strict=True) if size == n):
            mine = np.array([name == llm for name in o.llms])
            axes.plot(o.cost[mine], plan.error[mine] * 100, color=colour, lw=1.4, zorder=2)
            for k in np.flatnonzero(mine):
                marker = MARKERS[int(np.searchsorted(counts, o.visual_tokens[k])) % len(MARKERS)]
                axes.plot(o.cost[k], plan.error[k] * 100, marker, color=colour, ms=7, mew=1.5,
                          mfc=colour if o.allowed[k] else theme.paper, zorder=3)  # fmt: skip
    axes.plot(o.cost[plan.best], plan.error[plan.best] * 100, "o", ms=16, mfc="none", mec=theme.accent,
              mew=2, zorder=4)  # fmt: skip
    axes.axvline(plan.budget, color=theme.accent, lw=1.4, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        "budget", (plan.budget, 1), xycoords=("data", "axes fraction"), xytext=(-4, -4),
        textcoords="offset points", ha="right", va="top", color=theme.accent, fontsize=11,
    )  # fmt: skip
    axes.set_xscale("log")
    _cost_axis(axes, "x", asked.setup.kind)
    axes.set_ylabel("predicted error (%)")
    marks = [
        (f"{v:g}", {"marker": MARKERS[j % len(MARKERS)], "ms": 7, "ls": "none", "color": theme.muted})
        for j, v in enumerate(counts)
    ]
    legend(figure, theme, {"N =": size_entries(sizes, theme), "V =": marks})
    write_below(figure, theme, f"{asked.convention}; {asked.cost_model}")
    return figure


def figure_best_tokens(
    found: Regions, kind: Kind, caption: str, at: tuple[float, float] | None = None, style: Style = "light"
) -> Figure:
    """V*(Q, budget): colours for the best V, lines where the best N changes; `at` marks (Q, budget)."""
    theme = THEMES[style]
    figure, axes = canvas(theme)
    counts, sizes = np.unique(found.visual_tokens), np.unique(found.params_b)
    bought = found.choice >= 0
    v = np.where(bought, np.searchsorted(counts, found.visual_tokens[found.choice]), -1)
    n = np.where(bought, np.searchsorted(sizes, found.params_b[found.choice]), -1)
    colours = token_colours(len(counts))
    x = found.text + 1
    axes.pcolormesh(
        x, found.budget, np.ma.masked_less(v, 0), cmap=ListedColormap(colours), vmin=-0.5,
        vmax=len(counts) - 0.5, shading="nearest", rasterized=True,
    )  # fmt: skip
    axes.contour(x, found.budget, n, levels=np.arange(len(sizes)) - 0.5, colors=theme.ink, linewidths=1.2)
    for k, size in enumerate(sizes):
        inside = np.flatnonzero((n == k)[:, len(x) // 2])
        if len(inside) > len(found.budget) // 25:
            axes.text(
                x[len(x) // 2], found.budget[inside[len(inside) // 2]], size_name(size), fontsize=11,
                ha="center", va="center", color=theme.ink,
                bbox={"boxstyle": "round,pad=0.2", "fc": theme.paper, "ec": "none", "alpha": 0.85},
            )  # fmt: skip
    if at is not None:
        axes.plot(at[0] + 1, at[1], "P", ms=11, color=theme.paper, mec=theme.ink, mew=1.5, zorder=5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _cost_axis(axes, "y", kind)
    ticks = [q for q in (0, 1, 3, 10, 30, 100, 300, 1000, 3000) if found.text[0] <= q <= found.text[-1]]
    axes.set_xticks([q + 1 for q in ticks], [f"{q}" for q in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("text tokens Q")
    axes.grid(False)
    used = np.unique(v[v >= 0])
    figure.legend(
        handles=[Patch(color=colours[j], label=f"V = {counts[j]:g}") for j in used], ncols=7,
        loc="outside upper left", columnspacing=1.0, borderaxespad=0.2, handlelength=1.0,
        **legend_text(theme),
    )  # fmt: skip
    write_below(figure, theme, f"Colour: best V; lines: where the best N changes. {caption}")
    return figure


def _cost_axis(axes: Axes, which: str, kind: Kind) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(AXIS[kind])
    axis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, kind).removesuffix("FLOP").strip()))
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    if high < 30 * low:
        axis.set_minor_formatter(FuncFormatter(
            lambda value, _: amount(value, kind).removesuffix("FLOP").strip()
            if f"{value:e}"[0] in "25" else ""
        ))  # fmt: skip
    else:
        axis.set_minor_formatter(NullFormatter())
