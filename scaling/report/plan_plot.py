"""The figure of a plan, in the same dress as those of a fit."""

import numpy as np
from matplotlib.figure import Figure

from quecc_jax.pages.style import THEMES, Style
from scaling.planner import Plan
from scaling.report.plan_report import Question
from scaling.report.plot import MARKERS, canvas, legend, size_entries, write_below
from scaling.report.tokens_map import cost_axis


def figure_error_vs_cost(plan: Plan, asked: Question, style: Style = "light") -> Figure:
    """Predicted error of every choice against its cost, the frontier, the budget and what it buys.

    Hollow choices do not fit the machine's memory.
    """
    theme, o = THEMES[style], plan.options
    figure, axes = canvas(theme)
    best = plan.frontier
    axes.plot(
        o.cost[best],
        plan.error[best] * 100,
        drawstyle="steps-post",
        color=theme.accent,
        lw=7,
        alpha=0.32,
        solid_capstyle="round",
        zorder=1,
    )
    sizes, counts = np.unique(o.params_b), np.unique(o.visual_tokens)
    for n, colour in zip(sizes, theme.colours(len(sizes)), strict=True):
        for llm in dict.fromkeys(name for name, size in zip(o.llms, o.params_b, strict=True) if size == n):
            mine = np.array([name == llm for name in o.llms])
            axes.plot(o.cost[mine], plan.error[mine] * 100, color=colour, lw=1.4, zorder=2)
            for k in np.flatnonzero(mine):
                marker = MARKERS[int(np.searchsorted(counts, o.visual_tokens[k])) % len(MARKERS)]
                axes.plot(
                    o.cost[k],
                    plan.error[k] * 100,
                    marker,
                    color=colour,
                    ms=7,
                    mew=1.5,
                    mfc=colour if o.allowed[k] else theme.paper,
                    zorder=3,
                )
    axes.plot(
        o.cost[plan.best],
        plan.error[plan.best] * 100,
        "o",
        ms=16,
        mfc="none",
        mec=theme.accent,
        mew=2,
        zorder=4,
    )
    axes.axvline(plan.budget, color=theme.accent, lw=1.4, ls=(0, (4, 3)), zorder=1)
    axes.annotate(
        "budget",
        (plan.budget, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -4),
        textcoords="offset points",
        ha="right",
        va="top",
        color=theme.accent,
        fontsize=11,
    )
    axes.set_xscale("log")
    cost_axis(axes, "x", asked.setup.kind)
    axes.set_ylabel("predicted error (%)")
    marks = [
        (f"{v:g}", {"marker": MARKERS[j % len(MARKERS)], "ms": 7, "ls": "none", "color": theme.muted})
        for j, v in enumerate(counts)
    ]
    legend(figure, theme, {"N =": size_entries(sizes, theme), "V =": marks})
    write_below(figure, theme, f"{asked.convention}; {asked.cost_model}")
    return figure
