"""Figures of a fit. Each function returns a matplotlib Figure; nothing touches global state.

Colour stands for LLM size (a colour-blind-safe ramp, since sizes are ordered), the marker for the
number of visual tokens. Everything is drawn for a width of 700 pixels.
"""

import re
import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from quecc_jax.pages.numbers import size_name
from quecc_jax.pages.render import figure_to_svg
from quecc_jax.pages.style import DPI, THEMES, Style, Theme, dress
from scaling.fit import Fit
from scaling.frontier import Cost, law_choices, measured_choices, pareto, published_cost
from scaling.intervals import Profile
from scaling.table import ScoreTable

_MARKERS = "osD^vPXp*hd<>8"

Look = dict[str, Any]
"""Options of a matplotlib line or text."""


def figure_error_vs_flops(
    table: ScoreTable, fit: Fit, style: Style = "light", cost: Cost | None = None
) -> Figure:
    """The paper's figure: error against inference FLOPs, with the frontier computed from the law.

    Filled markers are measured cells on the measured frontier, hollow ones are beaten by a cheaper
    cell. With a `cost` of counted FLOPs the curves run through the counted cells only.
    """
    theme, counted = THEMES[style], cost is not None
    figure, axes = canvas(theme)
    counts = table.visual_tokens if counted else _curve_counts(table)
    cost = cost or published_cost(fit.law.query_tokens)
    best = pareto(law_choices(fit.law, table.params_b, counts, cost))
    draw_frontier(axes, theme, best.flops, best.error)
    cells = measured_choices(table, cost)
    winners = set(zip(*pareto(cells)[:2], strict=True))
    for n, colour in zip(table.params_b, theme.colours(len(table.params_b)), strict=True):
        curve = law_choices(fit.law, [n], counts, cost)
        axes.plot(curve.flops, curve.error * 100, color=colour, lw=1.8, zorder=2)
        for _, v, flops, err in zip(*cells.at(cells.params_b == n), strict=True):
            face = colour if (n, v) in winners else theme.paper
            axes.plot(flops, err * 100, **marker(table.visual_tokens, v), color=colour, mfc=face, zorder=3)
    _flops_axis(axes)
    published = f"LLM inference FLOPs per query (Q = {fit.law.query_tokens:g} text tokens)"
    axes.set_xlabel("inference FLOPs per question, counted" if counted else published)
    axes.set_ylabel("error (%)")
    frontier = Line2D([], [], **_frontier_look(theme), label="best at each cost, by the law")
    axes.legend(handles=[frontier], loc="upper right", **legend_text(theme))
    marks = count_entries(table.visual_tokens, theme)
    legend(figure, theme, {"N =": size_entries(table.params_b, theme), "V =": marks})
    priced = "cost counted" if counted else f"published cost 2N(Q + V), Q = {fit.law.query_tokens:g}"
    write_below(figure, theme, f"{fit.law.convention}; {priced}.")
    return figure


def figure_residuals(table: ScoreTable, fit: Fit, style: Style = "light") -> Figure:
    """Measured minus fitted error of every cell, in points of score, against V.

    The band is the root mean square; cells that the source flags as doubtful are ringed.
    """
    theme = THEMES[style]
    figure, axes = canvas(theme)
    band = fit.rmse * 100
    axes.axhspan(-band, band, color=theme.grid, alpha=0.7, lw=0, zorder=0)
    axes.axhline(0, color=theme.muted, lw=1, zorder=1)
    colours = theme.colours(len(table.params_b))
    # A small sideways shift per size keeps cells of the same V apart.
    shifts = np.linspace(-1, 1, len(table.params_b)) * 0.06
    for colour, shift, row in zip(colours, shifts, fit.residuals, strict=True):
        x = table.visual_tokens * np.exp(shift)
        axes.vlines(x, 0, -row * 100, color=colour, lw=1.4, zorder=2)
        axes.plot(x, -row * 100, "o", color=colour, ms=6, zorder=3)
    for flag in table.flagged:
        i = int(np.flatnonzero(table.params_b == flag.params_b)[0])
        j = int(np.flatnonzero(table.visual_tokens == flag.visual_tokens)[0])
        axes.plot(
            flag.visual_tokens * np.exp(shifts[i]),
            -fit.residuals[i, j] * 100,
            "o",
            ms=13,
            mfc="none",
            mec=theme.accent,
            mew=1.6,
            zorder=4,
        )
    _token_axis(axes, table)
    axes.set_ylabel("measured − fitted error (points)")
    write_below(figure, theme, f"{fit.law.convention}.")
    legend(figure, theme, {"N =": size_entries(table.params_b, theme)})
    return figure


def figure_error_vs_tokens(table: ScoreTable, fit: Fit, style: Style = "light") -> Figure:
    """Error against visual tokens, one curve per LLM size; bars are standard errors if known."""
    theme = THEMES[style]
    figure, axes = canvas(theme)
    counts = _curve_counts(table)
    for i, (n, colour) in enumerate(zip(table.params_b, theme.colours(len(table.params_b)), strict=True)):
        axes.plot(counts, fit.law.error(n, counts) * 100, color=colour, lw=1.8, zorder=2)
        bars = None if table.stderr is None else np.nan_to_num(table.stderr[i]) * 100
        axes.errorbar(
            table.visual_tokens,
            table.error[i] * 100,
            yerr=bars,
            fmt="o",
            color=colour,
            ms=6,
            elinewidth=1.2,
            capsize=0,
            zorder=3,
        )
    if fit.law.params.D > 0:
        axes.axhline(fit.law.params.D * 100, color=theme.muted, lw=1, ls=(0, (4, 4)), zorder=1)
        axes.annotate(
            "D",
            (0.01, fit.law.params.D * 100),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=theme.muted,
            fontsize=11,
        )
    _token_axis(axes, table)
    axes.set_ylabel("error (%)")
    write_below(figure, theme, f"{fit.law.convention}.")
    legend(figure, theme, {"N =": size_entries(table.params_b, theme)})
    return figure


def figure_profiles(fit: Fit, curves: Mapping[str, Profile], style: Style = "light") -> Figure:
    """How much worse the fit gets when a constant is imposed, (loss - least loss) / s^2, s^2 the least
    loss per degree of freedom. The band is the 95 % interval, the dashed line the loss that ends it
    away from bounds, the dot the fit."""
    theme = THEMES[style]
    columns = 2 if len(curves) > 1 else 1
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(7, 2.5 * rows), dpi=DPI, facecolor=theme.paper, layout="constrained")
    variance = fit.objective / (fit.n_points - fit.n_parameters)
    for number, curve in enumerate(curves.values(), 1):
        axes = figure.add_subplot(rows, columns, number)
        dress(axes, theme)
        limit = (curve.limit - fit.objective) / variance
        low, high = np.clip(curve.interval, curve.values[0], curve.values[-1])
        axes.axvspan(low, high, color=theme.accent, alpha=0.16, lw=0, zorder=0)
        axes.axhline(limit, color=theme.muted, lw=1, ls=(0, (4, 4)), zorder=1)
        axes.plot(curve.values, (curve.objective - fit.objective) / variance, color=theme.accent, lw=1.8)
        best = getattr(fit.law.params, curve.name)
        axes.plot(best, 0, "o", color=theme.ink, ms=6, zorder=3, clip_on=False)
        axes.set_ylim(0, 2.5 * limit)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(curve.name)
        axes.set_ylabel("loss above least / s²")
    write_below(figure, theme, f"{fit.law.convention}.")
    return figure


def figure_in_both(figure: Figure, colours: int = 0) -> tuple[str, str]:
    """A light figure as SVG, and the same in dark: one drawing with its colours exchanged.

    `colours` counts the ordered things that it colours (`Theme.colours`).
    """
    light = figure_to_svg(figure)
    pairs = zip(THEMES["light"].palette(colours), THEMES["dark"].palette(colours), strict=True)
    exchanged = dict(pairs)
    dark = re.sub(r"#[0-9a-f]{6}\b", lambda found: exchanged.get(found[0], found[0]), light)
    return light, dark


def token_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Colours for token counts where they fill an area, another ramp than that of the sizes."""
    return [matplotlib.colormaps["plasma"](x) for x in np.linspace(0.08, 0.95, count)]


def write_below(figure: Figure, theme: Theme, text: str) -> None:
    """A line of small print under the figure: what it assumes."""
    figure.supxlabel(textwrap.fill(text, 100), fontsize=9, color=theme.muted, x=0.01, ha="left")


def canvas(theme: Theme) -> tuple[Figure, Axes]:
    """A figure 700 pixels wide with one axes."""
    figure = Figure(figsize=(7, 4.4), dpi=DPI, facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot()
    dress(axes, theme)
    return figure, axes


def marker(counts: Float[np.ndarray, " V"], visual_tokens: float) -> Look:
    """How a choice with one of these token counts is marked."""
    index = int(np.searchsorted(counts, visual_tokens))
    return {"marker": _MARKERS[index % len(_MARKERS)], "ms": 7, "mew": 1.5, "ls": "none"}


def draw_frontier(
    axes: Axes, theme: Theme, cost: Float[np.ndarray, " choices"], error: Float[np.ndarray, " choices"]
) -> None:
    """A band under the least error that each cost buys, for choices by rising cost."""
    steps: Look = {"drawstyle": "steps-post", "solid_capstyle": "round", "zorder": 1}
    axes.plot(cost, error * 100, **_frontier_look(theme), **steps)


def _frontier_look(theme: Theme) -> Look:
    return {"color": theme.accent, "lw": 7, "alpha": 0.32}


def _curve_counts(table: ScoreTable) -> np.ndarray:
    return np.geomspace(table.visual_tokens[0], table.visual_tokens[-1], 200)


def _token_axis(axes: Axes, table: ScoreTable) -> None:
    axes.set_xscale("log")
    axes.set_xticks(table.visual_tokens)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("visual tokens V")


def _flops_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    narrow = high < 50 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())

    def name(flops: float, _: int) -> str:
        exponent = int(np.floor(np.log10(flops) + 1e-9))
        lead = round(flops / 10**exponent)
        return f"$10^{{{exponent}}}$" if lead == 1 else f"${lead}{{\\times}}10^{{{exponent}}}$"

    axes.xaxis.set_major_formatter(FuncFormatter(name))


def size_entries(params_b: np.ndarray, theme: Theme) -> list[tuple[str, Look]]:
    """Name and look of each size in a legend row."""
    colours = theme.colours(len(params_b))
    looks = [{"marker": "o", "ms": 8, "ls": "none", "color": colour} for colour in colours]
    return list(zip(map(size_name, params_b), looks, strict=True))


def count_entries(counts: Float[np.ndarray, " V"], theme: Theme) -> list[tuple[str, Look]]:
    """Name and look of each number of visual tokens in a legend row."""
    return [(f"{v:g}", {**marker(counts, v), "mew": 1, "color": theme.muted}) for v in counts]


def legend(figure: Figure, theme: Theme, rows: dict[str, list[tuple[str, Look]]]) -> None:
    columns = 1 + max(len(entries) for entries in rows.values())
    grid = [[(title, {"ls": "none"}), *entries] for title, entries in rows.items()]
    padded = [row + [("", {"ls": "none"})] * (columns - len(row)) for row in grid]
    # A legend fills its columns first.
    handles = [
        Line2D([], [], label=name, **look) for column in zip(*padded, strict=True) for name, look in column
    ]
    figure.legend(
        handles=handles,
        ncols=columns,
        loc="outside upper left",
        handletextpad=0.1,
        columnspacing=1.0,
        borderaxespad=0.2,
        **legend_text(theme),
    )


def legend_text(theme: Theme) -> Look:
    return {"frameon": False, "fontsize": 11, "labelcolor": theme.ink}
