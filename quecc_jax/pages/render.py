"""matplotlib figures as SVG and PNG, in the light and the dark style, and as a figure of a page."""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from quecc_jax.pages.page import figure_html, write_atomically
from quecc_jax.pages.style import DPI, Style


def figure_to_svg(figure: Figure) -> str:
    """The figure as one SVG document; the same figure gives the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def figure_to_png(figure: Figure, dpi: int = 2 * DPI) -> bytes:
    """The figure as PNG bytes, at twice the pixels of its nominal 700 by default."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def embed(out: Path, name: str, draw: Callable[[Style], Figure], alt: str, caption: str) -> str:
    """Both styles as an HTML figure, written to `out` as NAME.png and NAME-dark.png too."""
    light, dark = draw("light"), draw("dark")
    write_atomically(out / f"{name}.png", figure_to_png(light))
    write_atomically(out / f"{name}-dark.png", figure_to_png(dark))
    return figure_html(figure_to_svg(light), figure_to_svg(dark), alt, caption)
