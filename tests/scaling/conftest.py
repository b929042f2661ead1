import pytest


@pytest.fixture
def without_figures(monkeypatch):
    """Fits and plans draw their figures, but do not write them out, which takes most of a command's time."""
    for where in ("quecc_jax.pages.render", "scaling.report.plan_page"):
        monkeypatch.setattr(f"{where}.figure_to_png", lambda figure: b"\x89PNG")
    monkeypatch.setattr("scaling.report.plot.figure_to_svg", lambda figure: "<svg/>")
