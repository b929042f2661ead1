"""The demo's grid: its jobs, its directory, and the way from a recipe to the report."""

import dataclasses
import json
import os
import zlib

import numpy as np
import pytest

import configs.demo
import configs.study
import configs.study_compressors
from quecc_jax.commands import grid_law
from quecc_jax.commands.cli import execute
from quecc_jax.commands.demo import run_and_report
from quecc_jax.config.io import load_config
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.experiments.grid import at, digests, jobs
from quecc_jax.experiments.results import check_results
from quecc_jax.experiments.runner import Outcome, check, claim
from quecc_jax.experiments.stats import tasks
from quecc_jax.experiments.testbed.grids import Decoder, Recipe, size_grid
from quecc_jax.experiments.testbed.settings import TASKS, Testbed
from quecc_jax.run_lock import run_lock
from scaling.scores import read_scores
from tests.commands.synthetic import make_results

SMALL = Recipe(
    testbed=Testbed(images=40, test_images=10, questions=4, documents=200, tower_steps=4, tower_batch=12),
    decoders=(Decoder("S", 32, 1), Decoder("M", 64, 1), Decoder("L", 96, 1)),
    visual_tokens=(1, 16),
    language_steps=4,
    stage1_steps=2,
    stage2_steps=4,
    batch_size=8,
)


@pytest.mark.parametrize("recipe", [SMALL, configs.demo.QUICK, configs.study.RECIPE])
def test_jobs_are_distinct_and_need_earlier_ones(recipe):
    grid = size_grid(recipe, "runs/x", "x")
    every = jobs(grid)
    names = [job.name for job in every]
    assert len(set(names)) == len(names)
    for number, job in enumerate(every):
        assert set(job.needs) <= set(names[:number])
        assert job.cost > 0 and job.part
    seen = [cell for cell in grid.cells if cell.sees_images]
    whole = len(recipe.decoders) * len(recipe.visual_tokens) * len(recipe.seeds)
    assert len(seen) == whole + len(recipe.ablation_seeds) == sum(job.part == "cells" for job in every)
    shown = {(cell.llm, cell.runs[-1].model.visual_tokens, cell.seed) for cell in seen if cell.samples}
    assert shown == {("L", v, 0) for v in (recipe.visual_tokens[0], recipe.visual_tokens[-1])}


def test_the_short_demo_trains_only_what_has_seen_a_visual_token():
    grid = configs.demo.quick()
    assert {cell.part for cell in grid.cells} == {"cells", "question-only baseline"}
    started = {run.init_from for cell in grid.cells for run in cell.runs if run.train.stage != 2}
    assert started == {f"examples/language/{name}" for name in "ML"}
    assert {run.tower_from for cell in grid.cells for run in cell.runs} == {"", "examples/model"}


def test_every_model_is_trained_with_as_many_seeds_as_are_asked_for():
    for made in (configs.demo.grid, configs.demo.quick, configs.study.grid):
        one, two = ({(c.name, c.seed) for c in made(count).cells if c.sees_images} for count in (1, 2))
        assert {seed for _, seed in two} == {0, 1} and len(two) == 2 * len(one) and one < two
    with pytest.raises(UserError, match="--seeds -1 is no number of seeds"):
        execute("demo", ["--seeds", "-1"])


def test_the_zeroed_twin_differs_in_the_query_alone():
    cells = {cell.name: cell for cell in size_grid(SMALL, "runs/x", "x").cells}
    for one, twin in zip(cells["M-v1-s0"].runs, cells["M-v1-s0-zero"].runs, strict=True):
        assert (one.model.compressor.query, twin.model.compressor.query) == ("question", "zero")
        model = dataclasses.replace(twin.model, compressor=one.model.compressor)
        assert dataclasses.replace(twin, model=model, out=one.out, init_from=one.init_from) == one


def test_a_grid_moves_with_all_its_paths():
    grid = size_grid(SMALL, "runs/x", "x")
    moved = at(grid, "elsewhere/y")
    assert moved == size_grid(SMALL, "elsewhere/y", "x") and at(moved, "runs/x") == grid
    assert digests(moved) == digests(grid)


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (configs.demo.grid, 539867777),
        (configs.demo.quick, 2489196661),
        (configs.study.grid, 1318628888),
        (configs.study_compressors.grid, 3293111148),
    ],
)
def test_grids_that_were_started_before_the_harder_tasks_go_on(made, wanted):
    assert zlib.crc32(json.dumps(digests(made())).encode()) == wanted


def test_of_two_demos_in_one_directory_the_second_says_so_at_once(tmp_path):
    with run_lock(str(tmp_path)):
        here = f"^{tmp_path} is in use by process {os.getpid()} on "
        with pytest.raises(UserError, match=here):
            run_and_report(size_grid(SMALL, str(tmp_path), "x"), "", "launch.demo")
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_directory_belongs_to_one_grid(tmp_path):
    grid = size_grid(SMALL, str(tmp_path / "out"), "x")
    claim(grid)
    started = json.loads((tmp_path / "out" / "grid.json").read_text())["started"]
    claim(size_grid(SMALL, str(tmp_path / "out"), "x"))
    assert json.loads((tmp_path / "out" / "grid.json").read_text())["started"] == started
    other = dataclasses.replace(SMALL, stage2_steps=5)
    with pytest.raises(UserError, match="results of another grid"):
        claim(size_grid(other, str(tmp_path / "out"), "x"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        claim(size_grid(SMALL, str(tmp_path / "file" / "out"), "x"))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="made by an earlier version"):
        claim(size_grid(SMALL, str(tmp_path / "old"), "x"))


def test_failed_jobs_are_named():
    grid = size_grid(SMALL, "runs/x", "x")
    with pytest.raises(UserError, match=r"failed: tower, and S-v1-s0 .*tower\.error.* again"):
        check(Outcome([], ["tower"], ["S-v1-s0"], []), grid)
    with pytest.raises(UserError, match="another process is at work on data"):
        check(Outcome([], [], [], ["data"]), grid)
    check(Outcome(["data"], [], [], []), grid)


def test_a_grid_too_small_for_a_law_is_reported_without_one(tmp_path, capsys):
    results = make_results(tmp_path)
    results["rows"] = [row for row in results["rows"] if row["visual_tokens"] in (0, 1)]
    assert grid_law.fit_laws(results) == {}
    assert capsys.readouterr().err.count("no law was fitted") == len(tasks(results["rows"]))


@pytest.mark.slow
def test_a_small_grid_reaches_its_report(tmp_path, monkeypatch, capsys):
    """Everything that `launch.demo --quick` does, with a few steps of each part."""
    out = tmp_path / "out"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    grid = size_grid(SMALL, str(out), "small")
    monkeypatch.setattr(configs.demo, "quick", lambda seeds: grid)
    execute("demo", ["--quick", "--out", str(out)])
    assert (out / "report.html").resolve().as_uri() in capsys.readouterr().out
    html = (out / "report.html").read_text()
    assert html.rstrip().endswith("</html>")
    results = json.loads((out / "results.json").read_text())
    check_results(results)
    rows = results["rows"]
    seen = [cell for cell in grid.cells if cell.sees_images]
    assert {row["cell"] for row in rows} == {cell.name for cell in seen} | {"baseline"}
    for name in {row["cell"] for row in rows}:
        mine = [row for row in rows if row["cell"] == name]
        assert [(r["task"], r["kind"], r["n"]) for r in mine] == [
            (r["task"], r["kind"], r["n"]) for r in rows if r["cell"] == "baseline"
        ]
        assert tasks(mine) == list(TASKS)
        assert all(0 <= row["correct"] <= row["n"] for row in mine)
    for cell in seen:
        assert [len(results["losses"][cell.name][f"stage{stage}"]) for stage in (1, 2)] == [1, 1]
        for run in cell.runs:
            validate(load_config(f"{run.out}/config.json"))
    scores = read_scores(out / "scores.json")
    assert np.isfinite(scores.score).all() and scores.score.shape == (3, 2)
    assert results["fits"].keys() == set(TASKS)
    assert all((out / sample["image"]).is_file() for sample in results["samples"])
    assert {s["visual_tokens"] for s in results["samples"]} == {1, 16}

    before = [(out / "jobs" / f"{job.name}.json").stat().st_mtime_ns for job in jobs(grid)]
    execute("demo", ["--quick", "--out", str(out)])
    after = [(out / "jobs" / f"{job.name}.json").stat().st_mtime_ns for job in jobs(grid)]
    assert before == after
