"""The study: its jobs, its directory, and the way from a plan to the report."""

import dataclasses
import json
import os
import sys

import pytest

import configs.demo
from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.experiments import study
from quecc_jax.experiments.plan import DecoderSize, Plan, cells
from quecc_jax.experiments.study import add_seconds, claim, plan_jobs, run_study
from quecc_jax.experiments.summary import check_results
from tests.commands.synthetic import make_results

SMALL = Plan(
    decoders=(DecoderSize("S", 32, 1), DecoderSize("M", 64, 1), DecoderSize("L", 96, 1)),
    visual_tokens=(1, 16),
    side=2,
    pictures=40,
    test_pictures=10,
    questions=4,
    documents=200,
    tower_steps=4,
    tower_batch=12,
    language_steps=4,
    stage1_steps=2,
    stage2_steps=4,
    batch_size=8,
)


@pytest.mark.parametrize("plan", [SMALL, Plan(seeds=(0, 1, 2), ablation_seeds=(0, 1, 2))])
def test_jobs_are_distinct_and_need_earlier_ones(plan):
    jobs = plan_jobs(plan)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for place, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:place])
        assert job.cost > 0 and job.phase
    grid = len(plan.decoders) * len(plan.visual_tokens) * len(plan.seeds)
    assert len(cells(plan)) == grid + len(plan.ablation_seeds) == sum(job.phase == "cells" for job in jobs)


def test_a_directory_belongs_to_one_plan(tmp_path):
    claim(tmp_path / "out", SMALL)
    started = json.loads((tmp_path / "out" / "plan.json").read_text())["started"]
    claim(tmp_path / "out", dataclasses.replace(SMALL))
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["started"] == started
    with pytest.raises(UserError, match="results of another plan"):
        claim(tmp_path / "out", dataclasses.replace(SMALL, stage2_steps=5))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        claim(tmp_path / "file" / "out", SMALL)


def test_time_adds_up_over_runs(tmp_path):
    for _ in range(2):
        add_seconds(tmp_path, 1.5)
    assert json.loads((tmp_path / "seconds.json").read_text()) == 3.0


def test_failed_jobs_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "run_jobs", lambda *_: (["tower"], ["cell-S-v1-s0"]))
    with pytest.raises(UserError, match=r"failed: tower, and cell-S-v1-s0 .*tower\.error.* again"):
        run_study(SMALL, str(tmp_path / "out"), "python -m launch.demo")
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_grid_too_small_for_a_law_is_reported_without_one(tmp_path, capsys):
    results = make_results(tmp_path)
    results["cells"] = [cell for cell in results["cells"] if cell["visual_tokens"] == 1]
    assert study.fit_laws(results) == {}
    assert capsys.readouterr().err.count("no law was fitted") == len(results["tasks"])


@pytest.mark.slow
def test_a_small_plan_reaches_its_report(tmp_path, monkeypatch, capsys):
    """Everything that `launch.demo --quick` does, with a few steps of each part."""
    out = tmp_path / "out"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    monkeypatch.setattr(configs.demo, "quick", lambda: SMALL)
    monkeypatch.setattr(sys, "argv", ["demo", "--quick", "--out", str(out)])
    execute("demo", sys.argv[1:])
    assert (out / "report.html").resolve().as_uri() in capsys.readouterr().out
    html = (out / "report.html").read_text()
    assert html.rstrip().endswith("</html>")
    results = json.loads((out / "results.json").read_text())
    check_results(results)
    found = {(c["decoder"], c["visual_tokens"], c["seed"], c["query"]) for c in results["cells"]}
    assert found == {(c.decoder, c.visual_tokens, c.seed, c.query) for c in cells(SMALL)}
    for cell in results["cells"]:
        assert cell["counts"] == results["cells"][0]["counts"]
        assert all(0 <= score <= 1 for score in cell["scores"].values())
        assert [len(cell["loss"][f"stage{stage}"]) for stage in (1, 2)] == [1, 1]
    assert results["fits"].keys() == set(results["tasks"])
    assert all((out / sample["image"]).is_file() for sample in results["samples"])
    assert {s["visual_tokens"] for s in results["samples"]} == {1, 16}

    before = [(out / "jobs" / f"{job.name}.json").stat().st_mtime_ns for job in plan_jobs(SMALL)]
    execute("demo", sys.argv[1:])
    after = [(out / "jobs" / f"{job.name}.json").stat().st_mtime_ns for job in plan_jobs(SMALL)]
    assert before == after
