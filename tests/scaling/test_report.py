import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from quecc_jax.pages.numbers import flops_text, size_name
from quecc_jax.pages.page import Section, figure_html, html_page, paragraph, table_html, write_atomically
from quecc_jax.pages.render import figure_to_png, figure_to_svg
from scaling.fit import fit_law
from scaling.frontier import measured_cost
from scaling.report.fit_report import interval_text
from scaling.report.plot import (
    figure_error_vs_flops,
    figure_error_vs_tokens,
    figure_in_both,
    figure_residuals,
)
from scaling.scores import published
from scaling.table import parse_scores

FIGURES = (figure_error_vs_flops, figure_error_vs_tokens, figure_residuals)


@pytest.mark.parametrize(
    "ends, text",
    [
        ((0.1, 0.25), "0.1 to 0.25"),
        ((0.1, None), "0.1 or more"),
        ((0.1, np.inf), "0.1 or more"),
        ((None, 2), "2 or less"),
        ((None, None), "–"),
        (None, "–"),
    ],
)
def test_an_interval_may_lack_an_end(ends, text):
    assert interval_text(ends) == text


@pytest.fixture(scope="module")
def ocr():
    table = published("ocr")
    return table, fit_law(table, n_starts=16)


@pytest.mark.parametrize("draw", FIGURES)
def test_figures_render_in_both_styles(ocr, draw):
    light, dark = (figure_to_svg(draw(*ocr, style)) for style in ("light", "dark"))
    assert light != dark
    for svg in (light, dark):
        assert ET.fromstring(svg).tag.endswith("svg")
    assert figure_to_svg(draw(*ocr, "light")) == light


def lines(figure):
    return [np.array(line.get_xydata()).T for line in figure.axes[0].lines]


def test_figures_plot_the_numbers(ocr):
    table, fit = ocr
    drawn = [y for _, y in lines(figure_residuals(table, fit)) if len(y) == 7]
    np.testing.assert_allclose(np.concatenate(drawn), -100 * fit.residuals.ravel())
    points = {(x[0], round(y[0], 9)) for x, y in lines(figure_error_vs_flops(table, fit)) if len(x) == 1}
    flops = 2e9 * table.params_b[:, None] * (50 + table.visual_tokens)
    cells = zip(flops.ravel(), 100 * table.error.ravel(), strict=True)
    assert points == {(f, round(e, 9)) for f, e in cells}


def test_figures_stand_missing_cells_errors_and_counted_costs():
    table = parse_scores(
        {
            "params_b": [0.0001, 0.0004],
            "visual_tokens": [1, 4, 16],
            "score": [[0.1, 0.2, 0.3], [0.2, None, 0.45]],
            "stderr": [[0.01] * 3, [0.01, None, 0.02]],
        }
    )
    fit = fit_law(table, n_starts=16)
    for draw in FIGURES:
        assert figure_to_png(draw(table, fit))[:4] == b"\x89PNG"
    cost = measured_cost(table.params_b, table.visual_tokens, [[1e6, 2e6, 3e6], [4e6, 5e6, 6e6]])
    drawn = [list(x) for x, _ in lines(figure_error_vs_flops(table, fit, cost=cost))]
    assert [4e6, 5e6, 6e6] in drawn


@pytest.mark.parametrize("draw", FIGURES)
def test_dark_figure_is_the_light_one_in_other_colours(ocr, draw):
    table, fit = ocr
    both = figure_in_both(draw(table, fit), len(table.params_b))
    for found, style in zip(both, ("light", "dark"), strict=True):
        # Names of markers and clips depend on their colours.
        drawn = figure_to_svg(draw(table, fit, style))
        assert len({re.sub(r"\b[mp][0-9a-f]{10}\b", "id", svg) for svg in (found, drawn)}) == 1


def test_size_names():
    assert [size_name(n) for n in (7, 0.5, 0.04, 0.00012)] == ["7B", "0.5B", "40M", "120k"]
    assert [flops_text(x) for x in (0, 950, 8.06e6, 2.5e12)] == [
        "0 FLOP",
        "950 FLOP",
        "8.06 MFLOP",
        "2.5 TFLOP",
    ]


class _Balance(HTMLParser):
    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str | None] = []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_balanced_escaped_and_self_contained():
    rows = [["<b>", 1], ["a & b", 2]]
    page = html_page(
        "A <title>",
        [
            Section(
                "Head & tail",
                [
                    paragraph("x < y"),
                    table_html(rows, ["name", "n"], "names"),
                    figure_html("<svg/>", b"\x89PNG", 'a "quoted" alt', "below"),
                ],
            )
        ],
        lead="1 < 2",
    )
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.links) == 2
    assert all((link or "").startswith("data:image/") for link in parser.links)
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"https?://", page)


def test_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "sub" / "a.txt"
    write_atomically(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "\ud800")
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
