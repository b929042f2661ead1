"""The comparison of compressors: its jobs, its statistics, its report."""

import json
import math
import os
from typing import Any

import numpy as np
import pytest
import scipy.stats

from configs import study_compressors
from quecc_jax.commands.cli import execute
from quecc_jax.commands.grid_law import law_section
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.experiments import stats
from quecc_jax.experiments.compressors_report import findings
from quecc_jax.experiments.grid import jobs
from quecc_jax.experiments.report import write_report
from quecc_jax.experiments.results import CostRecord, Results
from quecc_jax.experiments.testbed.settings import TASKS

KINDS = {"single": ("color", "shape"), "mosaic": ("cell", "whole"), "reading": ("cell", "row")}


def rows(label: str, v: int, seed: int, share: float, part: str = "comparison") -> Any:
    """The rows of one model whose accuracy is `share` of everything."""
    about = {"cell": f"{label}-{v}-{seed}", "compressor": label, "part": part, "seed": seed}
    about |= {"llm": "M", "query": "question", "visual_tokens": v, "flops": 1e6 * (40 + v)}
    return [
        {**about, "task": task, "kind": kind, "correct": 500 * share, "n": 500, "train_seconds": 1.0}
        for task in TASKS
        for kind in KINDS[task]
    ]


def results(own: str = "ours") -> Results:
    """Three seeds of three compressors at two V, one rung, one elastic model."""
    shares = {"QueCC": 0.8, "TokenPacker": 0.75, own: 0.9}
    made = [
        row
        for label, share in shares.items()
        for v in (1, 4)
        for s in range(3)
        for row in rows(label, v, s, share + 0.01 * s * (s + 1) / 2)
    ]
    made += [row for s in range(3) for row in rows("a rung", 1, s, 0.7 + 0.01 * s, "ladder")]
    made += [row for v in (1, 4) for s in range(3) for row in rows("QueCC, elastic", v, s, 0.7, "elastic")]
    costs: list[CostRecord] = [
        {
            "compressor": label,
            "visual_tokens": v,
            "params": 1000,
            "flops": 1e6,
            "projector_flops": 1e3,
            "query_flops": 1e5,
            "milliseconds": 0.1,
        }
        for label, v in dict.fromkeys((r["compressor"], r["visual_tokens"]) for r in made)
    ]
    return {
        "grid": "compressors",
        "command": "python -m launch.compare_compressors",
        "machine": "a machine",
        "started": "2026-01-01T00:00:00",
        "seconds": {"total": 60.0},
        "visual_tokens": [1, 4],
        "seeds": [0, 1, 2],
        "llms": [{"name": "M", "width": 64, "depth": 2, "params": 1000}],
        "own": own,
        "stages": [[1, 300, 16], [2, 2500, 16]],
        "models": 24,
        "rows": made + rows("", 0, 0, 0.3),
        "losses": {},
        "samples": [],
        "steps": {"timing": costs, "tower": {"accuracy": {"shape": 0.9}, "loss": []}},
        "fits": {},
    }


def test_every_run_has_a_name_of_its_own_and_the_timing_comes_last():
    whole = study_compressors.grid()
    every = jobs(whole)
    names = [job.name for job in every]
    assert every[-1].name == "timing" and set(every[-1].needs) == set(names[:-1])
    seen = [cell for cell in whole.cells if cell.sees_images]
    assert len(seen) == 96 and not any(cell.keep for cell in seen)
    compared = {
        (cell.compressor, at_visual_tokens(cell.runs[-1].model, v).visual_tokens, cell.seed)
        for cell in seen
        if cell.part == "comparison"
        for v in cell.visual_tokens or (0,)
    }
    for label in ("QueCC", "TokenPacker", "M3", "MQT"):
        assert {(label, v, s) for v in (1, 4, 16) for s in (0, 1, 2)} <= compared
    assert ("no compressor", 64, 0) in compared
    assert [cell.seed for cell in seen] == sorted(cell.seed for cell in seen)


def test_a_difference_is_that_of_the_means_with_the_larger_error():
    rows = results()["rows"]
    found = stats.scores(rows, "mosaic", "compressor")
    pair = found["QueCC", 1], found["TokenPacker", 1]
    d = stats.difference(*pair)
    a, b = ([0.8, 0.81, 0.83], [0.75, 0.76, 0.78])
    assert d.gain == pytest.approx(np.mean(a) - np.mean(b))
    over_seeds = [np.std(x, ddof=1) / math.sqrt(3) for x in (a, b)]
    binomial = [math.sqrt(np.mean(x) * (1 - np.mean(x)) / 1000) for x in (a, b)]
    assert all(x < y for x, y in zip(over_seeds, binomial, strict=True))
    assert d.error == pytest.approx(math.hypot(*binomial))
    assert stats.welch_p(*pair) == pytest.approx(scipy.stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert d.errors == pytest.approx(d.gain / d.error)
    one = stats.scores(rows[:2], "single", "compressor")["QueCC", 1]
    assert math.isnan(stats.welch_p(one, pair[0]))


def test_the_report_says_what_the_numbers_say(tmp_path):
    given = results()
    said = " ".join(findings(given))
    assert "ours against QueCC at V = 1: single +10.0" in said and "QueCC and TokenPacker" in said
    page = write_report(given, tmp_path, law_section(given, tmp_path)).read_text()
    assert "fitted laws" not in page
    for text in ("Every compressor, side by side", "a rung", "QueCC, elastic", "81.3 ± 0.9", "no image"):
        assert text in page
    assert (tmp_path / "flops.png").stat().st_size > 1000 and (tmp_path / "flops-dark.png").is_file()


@pytest.mark.slow
def test_a_few_steps_of_everything_reach_the_report(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    execute("compare-compressors", ["--quick", "--out", str(out)])
    assert (out / "report.html").resolve().as_uri() in capsys.readouterr().out
    made = json.loads((out / "results.json").read_text())
    assert {c["compressor"] for c in made["steps"]["timing"]} == {
        r["compressor"] for r in made["rows"] if r["visual_tokens"]
    }
    assert all(c["milliseconds"] > 0 for c in made["steps"]["timing"])
    assert not list((out / "cells").glob("*/stage*"))
