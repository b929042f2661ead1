"""The comparison of compressors: its jobs, its statistics, its report."""

import dataclasses
import json
import math
import os
import sys

import numpy as np
import pytest
from scipy import stats

from configs import study_compressors
from quecc_jax.commands.cli import execute
from quecc_jax.commands.compare_compressors import comparison_jobs, timed
from quecc_jax.config.shapes import output_tokens
from quecc_jax.experiments import comparison_summary as summary
from quecc_jax.experiments.comparison_report import findings, write_report
from quecc_jax.experiments.plan import TASKS

KINDS = {"single": ("color",), "mosaic": ("cell", "whole"), "reading": ("cell", "row")}


def row(label: str, v: int, seed: int, share: float, part: str = "comparison") -> dict:
    """One result whose accuracy is `share` on every task."""
    kinds = {f"{task}/{kind}": [share, 500] for task in TASKS for kind in KINDS[task]}
    return {
        "label": label,
        "part": part,
        "seed": seed,
        "visual_tokens": v,
        "kinds": kinds,
        "scores": dict.fromkeys(TASKS, share),
        "counts": dict.fromkeys(TASKS, 1000),
        "flops_per_question": {task: 1e6 * (40 + v) for task in TASKS},
        "loss": {"stage1": [[1, 2.0]]},
    }


def results(own: str = "ours") -> dict:
    """Three seeds of three compressors at two V, one rung, one elastic model."""
    plan = dataclasses.asdict(study_compressors.plan()) | {"visual_tokens": [1, 4]}
    shares = {"QueCC": 0.8, "TokenPacker": 0.75, own: 0.9}
    rows = [
        row(label, v, s, share + 0.01 * s * (s + 1) / 2)
        for label, share in shares.items()
        for v in (1, 4)
        for s in range(3)
    ]
    rows += [row("a rung", 1, s, 0.7 + 0.01 * s, "ladder") for s in range(3)]
    rows += [row("QueCC, elastic", v, s, 0.7, "elastic") for v in (1, 4) for s in range(3)]
    costs = [
        {
            "label": label,
            "visual_tokens": v,
            "params": 1000,
            "projector_params": 10,
            "flops": 1e6,
            "projector_flops": 1e3,
            "query_flops": 1e5,
            "milliseconds": 0.1,
        }
        for label, v in dict.fromkeys((r["label"], r["visual_tokens"]) for r in rows)
    ]
    return {
        "command": "python -m launch.compare_compressors",
        "machine": "a machine",
        "started": "2026-01-01T00:00:00",
        "seconds": {"total": 60.0},
        "plan": plan,
        "tasks": list(TASKS),
        "rows": rows,
        "costs": costs,
        "own": own,
        "runs": 24,
        "tower": {"accuracy": {"shape": 0.9}},
        "data": {},
        "baseline": {
            "decoder": "M",
            "seed": 0,
            "scores": dict.fromkeys(TASKS, 0.3),
            "counts": dict.fromkeys(TASKS, 1000),
        },
    }


def test_every_run_has_a_name_of_its_own_and_the_timing_comes_last():
    whole = study_compressors.comparison()
    jobs = comparison_jobs(whole)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names) and {e.name for e in whole.entries} <= set(names)
    assert jobs[-1].name == "timing" and set(jobs[-1].needs) == set(names[:-1])
    grid = whole.plan.vision.grid
    for entry in whole.entries:
        assert all(output_tokens(config, grid) > 0 for config in (*entry.tested, entry.trained))
    compared = {
        (e.label, output_tokens(c, grid), e.seed)
        for e in whole.entries
        if e.part == "comparison"
        for c in e.tested
    }
    for label in ("QueCC", "TokenPacker"):
        assert {(label, v, s) for v in (1, 4, 16) for s in (0, 1, 2)} <= compared
    assert len(timed(whole.entries)) == len({(label, config) for label, config in timed(whole.entries)})


def test_a_difference_is_that_of_the_means_with_the_larger_error():
    rows = results()["rows"]
    d = summary.difference(rows, "mosaic", ("QueCC", 1), ("TokenPacker", 1))
    a, b = ([0.8, 0.81, 0.83], [0.75, 0.76, 0.78])
    assert d.gain == pytest.approx(np.mean(a) - np.mean(b))
    over_seeds = [np.std(x, ddof=1) / math.sqrt(3) for x in (a, b)]
    binomial = [math.sqrt(np.mean(x) * (1 - np.mean(x)) / 1000) for x in (a, b)]
    assert all(x < y for x, y in zip(over_seeds, binomial, strict=True))
    assert d.error == pytest.approx(math.hypot(*binomial))
    assert d.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert d.errors == pytest.approx(d.gain / d.error)
    with pytest.raises(KeyError):
        summary.difference(rows, "mosaic", ("QueCC", 1), ("nobody", 1))


def test_the_report_says_what_the_numbers_say(tmp_path):
    given = results()
    said = " ".join(findings(given))
    assert "ours against QueCC at V = 1: single +10.0" in said and "QueCC and TokenPacker" in said
    page = write_report(given, tmp_path).read_text()
    for text in ("Every compressor, side by side", "a rung", "QueCC, elastic", "81.3 ± 0.9", "no picture"):
        assert text in page
    assert (tmp_path / "flops.png").stat().st_size > 1000 and (tmp_path / "flops-dark.png").is_file()


@pytest.mark.slow
def test_a_few_steps_of_everything_reach_the_report(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    monkeypatch.setattr(sys, "argv", ["comparison", "--quick", "--out", str(out)])
    execute("compare-compressors", sys.argv[1:])
    assert (out / "report.html").resolve().as_uri() in capsys.readouterr().out
    made = json.loads((out / "results.json").read_text())
    assert {c["label"] for c in made["costs"]} == {r["label"] for r in made["rows"]}
    assert all(c["milliseconds"] > 0 for c in made["costs"])
    assert not list((out / "runs").iterdir())
