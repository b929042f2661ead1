"""The page: complete, self-contained, escaped, and honest about what is missing."""

import copy
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from quecc_jax.commands.grid_law import law_section
from quecc_jax.errors import UserError
from quecc_jax.experiments.report import write_report
from quecc_jax.experiments.results import read_results
from tests.commands.synthetic import make_results


class _Reader(html.parser.HTMLParser):
    """Collects addresses, headings and text, and checks that tags close in order."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open, f"unclosed tags {self.open}"

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for key, value in attrs if key in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f" {data}"
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    results = make_results(folder, seeds=3)
    page = write_report(results, folder, law_section(results, folder))
    return folder, results, _Reader(page.read_text(encoding="utf-8"))


def test_page_stands_alone_with_every_section_in_order(made):
    _, results, page = made
    assert page.headings == [
        "Findings",
        "Accuracy",
        "Does the query matter?",
        "The fitted laws and the compute frontier",
        "Training losses",
        "Test images, questions and answers",
        "How it was made",
    ]
    # Two renderings of accuracy, query and losses and of law and residuals per task; one per sample.
    assert len(page.addresses) == 2 * (3 + 2 * 3) + len(results["samples"])
    assert all(address.startswith("data:image/") for address in page.addresses)


def test_page_states_errors_questions_and_seeds(made):
    _, _, page = made
    assert "1,200 test questions" in page.text
    assert "standard error over seeds" in page.text and "Seeds 0, 1, 2" in page.text


def test_phases_that_ran_side_by_side_are_told_from_the_time_that_passed(made, tmp_path):
    """Two processes work for 2,031 s in 1,150 s; a bar as long as what passed would say that one phase took it all."""
    _, results, _ = made
    said = "Phases are summed over jobs that ran side by side"
    some = copy.deepcopy(results) | {"samples": []}
    pages = []
    for seconds in (
        {"data": 300.0, "cells": 900.0, "total": 600.0},
        {"data": 60.0, "cells": 30.0, "total": 90.0},
    ):
        some["seconds"] = seconds
        pages.append(write_report(some, tmp_path, None).read_text(encoding="utf-8"))
    assert [said in text for text in pages] == [True, False]
    lengths = [[float(x) for x in re.findall(r"width:\s*([\d.]+)%", text)] for text in pages]
    assert [pytest.approx(25, abs=0.1), pytest.approx(75, abs=0.1)] == lengths[0][-2:]
    assert [pytest.approx(66.7, abs=0.1), pytest.approx(33.3, abs=0.1)] == lengths[1][-2:]


def test_samples_show_failures_in_words_and_escape_text(made):
    _, results, page = made
    wrong = sum(s["prediction"] != s["truth"] for s in results["samples"])
    assert 0 < wrong < len(results["samples"])
    assert page.text.count("✗ wrong") == wrong
    assert page.text.count("✓ right") == len(results["samples"]) - wrong
    assert "what is <mosaic>?" in page.text


def test_figures_lie_beside_the_page(made):
    folder, _, _ = made
    names = [
        "accuracy",
        "query",
        "losses",
        *(f"{k}_{t}" for k in ("law", "residuals") for t in ("single", "mosaic", "reading")),
    ]
    assert {p.name for p in folder.glob("*.png")} == {f"{n}{s}.png" for n in names for s in ("", "-dark")}
    with Image.open(folder / "accuracy.png") as light, Image.open(folder / "accuracy-dark.png") as dark:
        assert light.size == dark.size and light.width == 1400
        assert np.asarray(light.convert("RGB"))[0, 0].min() > 200
        assert np.asarray(dark.convert("RGB"))[0, 0].max() < 60


@pytest.fixture(scope="module")
def small(made):
    """One finished cell: no seeds to average, no law to fit, no pair, no baseline."""
    _, full, _ = made
    return copy.deepcopy(full) | {
        "rows": [row for row in full["rows"] if row["cell"] == "M-v1-s0-question"],
        "llms": [llm for llm in full["llms"] if llm["name"] == "M"],
        "seeds": [0],
        "visual_tokens": [1],
        "samples": [],
        "steps": {"data": full["steps"]["data"]},
        "fits": {task: full["fits"][task] for task in ("mosaic", "reading")},
    }


def test_one_cell_still_makes_a_report(small, tmp_path):
    page = _Reader(write_report(small, tmp_path, law_section(small, tmp_path)).read_text(encoding="utf-8"))
    assert "Does the query matter?" not in page.headings
    assert page.text.count("No law can be drawn") == 2 and page.text.count("No law was fitted") == 1


def test_a_constant_that_nothing_limits_is_reported(made):
    folder, results, _ = made
    results = copy.deepcopy(results)
    results["fits"]["single"]["ci"]["A"] = [0.125, None]
    assert "0.125 or more" in write_report(results, folder, law_section(results, folder)).read_text(
        encoding="utf-8"
    )


def test_missing_sample_image_is_named(made, tmp_path):
    _, results, _ = made
    with pytest.raises(UserError, match=r"cannot read the sample image .*noise"):
        write_report(results, tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_command_line_writes_the_page_and_reports_bad_input(small, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(small))

    def run():
        command = [sys.executable, "-m", "launch.report", "--results", str(path)]
        return subprocess.run(command, capture_output=True, text=True)

    assert run().returncode == 0
    assert (tmp_path / "report.html").exists()
    path.write_text("{")
    broken = run()
    assert broken.returncode == 1
    assert broken.stderr.startswith("error: cannot read results") and len(broken.stderr.splitlines()) == 1


def test_a_row_without_its_visual_tokens_is_refused(made, tmp_path):
    _, results, _ = made
    first, *rest = results["rows"]
    lacking = {key: value for key, value in first.items() if key != "visual_tokens"}
    (tmp_path / "results.json").write_text(json.dumps({**results, "rows": [*rest, lacking]}))
    with pytest.raises(
        UserError, match=r"results\.json: a row of the results does not say its visual_tokens"
    ):
        read_results(tmp_path / "results.json")
