"""V*(Q, budget): how many visual tokens are best for every text length and budget, and its figure."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from quecc_jax.errors import UserError
from quecc_jax.pages.numbers import size_name
from quecc_jax.pages.style import THEMES, Style
from scaling.formatting import COST_AXIS, Kind, amount
from scaling.law import Axis, Law
from scaling.report.plot import canvas, legend_text, token_colours, write_below

TEXT_LENGTHS = np.unique(np.round(np.geomspace(1, 1001, 81)) - 1)
"""Text lengths Q of the map, 0 to 1000."""


class TokensMap(NamedTuple):
    """The best choice over a grid of text lengths and budgets.

    budget is in the unit of the cost; size and tokens index params_b (billions) and visual_tokens, both
    ascending, -1 where the budget buys nothing.
    """

    text: Float[np.ndarray, " Q"]
    budget: Float[np.ndarray, " budgets"]
    size: Int[np.ndarray, "budgets Q"]
    tokens: Int[np.ndarray, "budgets Q"]
    params_b: Float[np.ndarray, " N"]
    visual_tokens: Float[np.ndarray, " V"]


def published_costs(
    params_b: Axis, visual_tokens: Axis, text: Float[np.ndarray, " Q"]
) -> Float[np.ndarray, "N V Q"]:
    """The paper's 2 N (Q + V) FLOPs for every size, count and text length."""
    n, v = np.asarray(params_b, np.float64), np.asarray(visual_tokens, np.float64)
    return 2e9 * n[:, None, None] * (text[None, None] + v[None, :, None])


def tokens_map(
    law: Law,
    params_b: Axis,
    visual_tokens: Axis,
    costs: Float[np.ndarray, "N V Q"],
    text: Float[np.ndarray, " Q"] = TEXT_LENGTHS,
    points: int = 160,
) -> TokensMap:
    """The least error that each budget buys at each text length.

    costs belong to the given sizes, counts and lengths, all ascending (sizes may repeat);
    `points` budgets run from the cheapest to the dearest of them.

    Raises:
      UserError: every cost is infinite, because nothing fits the machine.
    """
    n, v = np.asarray(params_b, np.float64), np.asarray(visual_tokens, np.float64)
    finite = costs[np.isfinite(costs)]
    if not finite.size:
        raise UserError("No choice fits the machine's memory at any text length.")
    budget = np.geomspace(finite.min(), finite.max(), points)
    laws = [dataclasses.replace(law, query_tokens=float(q)) for q in text]
    errors = np.stack([each.error(n[:, None], v[None, :]).ravel() for each in laws], axis=1)
    bought = costs.reshape(len(n) * len(v), 1, len(text)) <= budget[None, :, None] * (1 + 1e-12)
    choice = np.argmin(np.where(bought, errors[:, None, :], np.inf), axis=0)
    some = bought.any(axis=0)
    sizes = np.unique(n)
    size = np.where(some, np.searchsorted(sizes, n)[choice // len(v)], -1)
    return TokensMap(text, budget, size, np.where(some, choice % len(v), -1), sizes, v)


def figure_best_tokens(
    found: TokensMap, kind: Kind, caption: str, at: tuple[float, float] | None = None, style: Style = "light"
) -> Figure:
    """Colours for the best V, lines where the best N changes; `at` marks one (Q, budget)."""
    theme = THEMES[style]
    figure, axes = canvas(theme)
    colours = token_colours(len(found.visual_tokens))
    x = found.text + 1
    axes.pcolormesh(
        x,
        found.budget,
        np.ma.masked_less(found.tokens, 0),
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        shading="nearest",
        rasterized=True,
    )
    levels = np.arange(len(found.params_b)) - 0.5
    axes.contour(x, found.budget, found.size, levels=levels, colors=theme.ink, linewidths=1.2)
    middle = len(x) // 2
    for k, size in enumerate(found.params_b):
        inside = np.flatnonzero(found.size[:, middle] == k)
        if len(inside) > len(found.budget) // 25:
            axes.text(
                x[middle],
                found.budget[inside[len(inside) // 2]],
                size_name(size),
                fontsize=11,
                ha="center",
                va="center",
                color=theme.ink,
                bbox={"boxstyle": "round,pad=0.2", "fc": theme.paper, "ec": "none", "alpha": 0.85},
            )
    if at is not None and x[0] <= at[0] + 1 <= x[-1] and found.budget[0] <= at[1] <= found.budget[-1]:
        axes.plot(at[0] + 1, at[1], "P", ms=11, color=theme.paper, mec=theme.ink, mew=1.5, zorder=5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    cost_axis(axes, "y", kind)
    ticks = [q for q in (0, 1, 3, 10, 30, 100, 300, 1000, 3000) if found.text[0] <= q <= found.text[-1]]
    axes.set_xticks([q + 1 for q in ticks], [f"{q}" for q in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("text tokens Q")
    axes.grid(False)
    used = np.unique(found.tokens[found.tokens >= 0])
    figure.legend(
        handles=[Patch(color=colours[j], label=f"V = {found.visual_tokens[j]:g}") for j in used],
        ncols=7,
        loc="outside upper left",
        columnspacing=1.0,
        borderaxespad=0.2,
        handlelength=1.0,
        **legend_text(theme),
    )
    write_below(figure, theme, f"Colour: best V; lines: where the best N changes. {caption}")
    return figure


def cost_axis(axes: Axes, which: str, kind: Kind) -> None:
    """Names a logarithmic axis of costs and writes its ticks with units."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(COST_AXIS[kind])

    def short(value: float, _: int) -> str:
        return amount(value, kind).removesuffix("FLOP").strip()

    axis.set_major_formatter(FuncFormatter(short))
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    # Less than two decades may hold a single power of ten.
    few = FuncFormatter(lambda value, place: short(value, place) if f"{value:e}"[0] in "25" else "")
    axis.set_minor_formatter(few if high < 100 * low else NullFormatter())
