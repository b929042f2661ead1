"""The figure of profile likelihoods: one panel for each constant."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from quecc_jax.pages.style import DPI, THEMES, Style, dress
from scaling.fit import Fit
from scaling.profile import Profile
from scaling.report.plot import write_below


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
