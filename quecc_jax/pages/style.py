"""The look that all figures share: two themes, the colour ramp and the dress of an axes."""

from typing import Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes

Style = Literal["light", "dark"]
DPI = 100


class Theme(NamedTuple):
    """Colours of one style; `ramp` is the part of viridis that stands out from the paper."""

    paper: str
    ink: str
    muted: str
    grid: str
    accent: str
    ramp: tuple[float, float]

    def colours(self, count: int) -> list[tuple[float, float, float, float]]:
        """Colours for ordered things, distinct to the colour-blind too."""
        return [matplotlib.colormaps["viridis"](x) for x in np.linspace(*self.ramp, count)]

    def palette(self, count: int) -> list[str]:
        """All its colours as #rrggbb, `count` of them from the ramp."""
        named = [self.paper, self.ink, self.muted, self.grid, self.accent]
        return [*named, *map(matplotlib.colors.to_hex, self.colours(count))]


THEMES: dict[Style, Theme] = {
    "light": Theme("#ffffff", "#1c1f24", "#5b6470", "#e4e7eb", "#d55e00", (0.02, 0.74)),
    "dark": Theme("#16191d", "#e8eaed", "#9aa3ad", "#2c3138", "#ff9248", (0.36, 0.98)),
}


def dress(axes: Axes, theme: Theme, font_size: int = 11) -> None:
    """Paper, grid, the two spines that carry ticks, and labels one point above `font_size`."""
    axes.set_facecolor(theme.paper)
    axes.grid(color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.muted)
    axes.tick_params(which="both", colors=theme.muted, labelcolor=theme.ink, labelsize=font_size, length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(theme.ink)
        axis.label.set_fontsize(font_size + 1)
