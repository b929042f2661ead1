"""A grid of language models in one process: what it runs, how it resumes, shares and fails, what it writes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from quecc_jax.commands.cli import execute
from quecc_jax.commands.sweep import sharded
from quecc_jax.errors import UserError
from quecc_jax.experiments import cell as cell_module
from quecc_jax.experiments import runner
from quecc_jax.experiments.grid import Benchmarks, Grid
from quecc_jax.experiments.llava_grid import Llm, training_flops
from quecc_jax.experiments.runner import Outcome, run_grid, write_scores
from quecc_jax.experiments.stats import scores_record
from quecc_jax.experiments.store import result_file, write_result
from quecc_jax.flops import train_flops
from quecc_jax.run_lock import run_lock
from scaling.fit import fit_law
from scaling.scores import read_scores
from tests.experiments.small_grid import DECODERS, small_grid, write_data


def row(params_b, v, seed, task, score, stderr):
    """A result that has no count of right answers, as that of a benchmark."""
    about = {"params_b": params_b, "visual_tokens": v, "seed": seed, "query": "question"}
    return {**about, "task": task, "kind": "", "score": score, "stderr": stderr}


def run(grid: Grid, chosen=None) -> Outcome:
    return run_grid(grid, chosen)


@pytest.fixture(autouse=True)
def cache_as_before():
    """A cell compiles into its grid's directory; other tests do not."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def grid(tmp_path) -> Grid:
    write_data(tmp_path / "data")
    return small_grid(tmp_path / "out")


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """Cells that ran, each with a made-up score; those in the file `broken` fail."""
    ran = []

    def run_cell(grid, cell, report):
        report(1, 2, "half")
        ran.append(cell.name)
        broken = Path(grid.out, "broken")
        if broken.is_file() and cell.name in broken.read_text():
            raise ValueError("the disk is made of cheese")
        v = cell.runs[-1].model.visual_tokens
        score = 0.5 + cell.params_b + v / 100 + cell.seed / 1000
        rows = [row(cell.params_b, v, cell.seed, "dots", score, 0.03)]
        return {"rows": rows, "losses": {}, "samples": []}

    monkeypatch.setattr(cell_module, "run_cell", run_cell)
    return ran


def test_cells_and_their_two_runs(tmp_path):
    every = small_grid(tmp_path / "out", seeds=(0, 7)).cells
    assert [c.name for c in every[:4]] == ["w32-v1-s0", "w32-v4-s0", "w64-v1-s0", "w64-v4-s0"]
    assert len(every) == 8
    one, two = every[7].runs
    assert one.out == f"{tmp_path}/out/cells/w64-v4-s7/stage1" == two.init_from
    assert one.model.visual_tokens == two.model.visual_tokens == 4
    assert one.model.decoder.width == 64
    assert one.data.max_length == 24
    assert (one.train.seed, one.train.stage, two.train.stage) == (7, 1, 2)
    assert every[7].cost == training_flops(every[7]) == 3 * train_flops(one) + 4 * train_flops(two)
    weighted = (Llm("w32", "weights/w", size_b=1, decoder=DECODERS[32]),)
    one, _ = small_grid(tmp_path / "out", llms=weighted).cells[0].runs
    assert (one.init_from, one.data.tokenizer) == ("weights/w", "weights/w/tokenizer")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"visual_tokens": (1, 9)}, "9 visual tokens do not tile a grid of 4; these do: 1, 4, 16"),
        ({"visual_tokens": ()}, "visual_tokens are empty"),
        ({"seeds": (1, 1)}, "seeds repeat"),
        ({"tests": ()}, "tests are empty"),
        ({"tests": (), "benchmarks": Benchmarks("pope,pope", "x")}, "tests repeat"),
        ({"llms": (Llm("qwen1.5-7b"), Llm("vicuna-7b"))}, "same size"),
        ({"llms": (Llm("qwen1.5-8b"),)}, "no preset"),
        ({"llms": (Llm("qwen1.5-8b", size_b=8),)}, "not known"),
    ],
)
def test_grids_that_cannot_be_are_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        small_grid(tmp_path / "out", **changes)


def test_failures_are_isolated_and_retried_and_the_rest_is_not_run_again(grid, told):
    out = Path(grid.out)
    out.mkdir()
    (out / "broken").write_text("w32-v4-s0")
    outcome = run(grid)
    assert outcome == Outcome(["w32-v1-s0", "w64-v1-s0", "w64-v4-s0"], ["w32-v4-s0"], [], [])
    assert "cheese" in (out / "jobs" / "w32-v4-s0.error").read_text()
    table = json.loads((out / "scores.json").read_text())
    assert table["score"] == [[pytest.approx(0.542), None], [pytest.approx(0.574), pytest.approx(0.604)]]
    assert table["stderr"][0] == [pytest.approx(0.03), None]
    (out / "broken").unlink()
    told.clear()
    assert run(grid).failed == []
    assert told == ["w32-v4-s0"]
    assert not (out / "jobs" / "w32-v4-s0.error").exists()
    found = read_scores(out / "scores.json")
    assert fit_law(found, fix_d=0.0, n_starts=8).n_points == 4
    assert found.query_tokens == 6
    with pytest.raises(UserError, match="another grid"):
        run(dataclasses.replace(grid, cells=grid.cells[:2]))


def test_a_cell_that_another_process_holds_is_left_to_it(grid, told):
    with run_lock(f"{grid.out}/locks/w64-v1-s0"):
        outcome = run(grid)
    assert outcome.elsewhere == ["w64-v1-s0"]
    assert len(outcome.done) == 3
    # It ends there meanwhile, badly; this process does not run into the same.
    assert run(grid).elsewhere == []
    assert told.count("w64-v1-s0") == 1


def test_a_cell_that_failed_elsewhere_meanwhile_is_not_tried_again(grid, told, monkeypatch):
    inner = cell_module.run_cell

    def run_cell(grid, cell, report):
        if cell.name == "w32-v1-s0":
            error = Path(grid.out, "jobs", "w64-v4-s0.error")
            error.write_text("Traceback\nValueError: no room\n")
        return inner(grid, cell, report)

    monkeypatch.setattr(cell_module, "run_cell", run_cell)
    outcome = run(grid)
    assert outcome.failed == ["w64-v4-s0"]
    assert "w64-v4-s0" not in told


def test_scores_of_another_host_that_come_while_writing_are_not_lost(grid, told, monkeypatch):
    run(grid, {cell.name for cell in grid.cells[:3]})
    late = {"rows": [row(0.064, 4, 0, "dots", 0.9, 0.0)], "losses": {}, "samples": []}
    write = runner.write_record

    def write_late(path, value):
        write(path, value)
        write_result(grid, "w64-v4-s0", 1.0, late)

    monkeypatch.setattr(runner, "write_record", write_late)
    write_scores(grid)
    assert json.loads(Path(grid.out, "scores.json").read_text())["score"][1][1] == 0.9


def test_cells_that_need_one_that_runs_elsewhere_wait_for_another_start(grid, told):
    first, *others = grid.cells
    needing = dataclasses.replace(others[0], needs=(first.name,))
    grid = dataclasses.replace(grid, cells=(first, needing, *others[1:]))
    with run_lock(f"{grid.out}/locks/{first.name}"):
        outcome = run(grid)
    assert sorted(outcome.elsewhere) == sorted([first.name, needing.name]) and len(outcome.done) == 2
    assert run(grid).elsewhere == []
    assert told.index(first.name) < told.index(needing.name) and len(told) == 4


def test_scores_are_means_over_seeds_and_tests():
    rows = [
        one
        for seed, (a, b) in enumerate(((0.2, 0.4), (0.4, 0.8)))
        for one in (row(0.032, 1, seed, "dots", a, 0.01), row(0.032, 1, seed, "more", b, 0.03))
    ]
    blind = {**row(0.032, 0, 0, "dots", 0.9, 0.1)}
    zeros = {**row(0.032, 1, 0, "dots", 0.9, 0.1), "query": "zero"}
    record = scores_record([*rows, blind, zeros], {0.032, 0.064}, (1, 4), 6.0, "x", "y")  # type: ignore[list-item]
    assert record["score"] == [[pytest.approx(0.45), None], [None, None]]
    assert record["tasks"]["more"][0][0] == pytest.approx(0.6)
    # The seeds differ by more than their questions explain: 0.2 and 0.4 are 0.3 ± 0.1, 0.4 and 0.8 are 0.6 ± 0.2.
    assert record["stderr"][0][0] == pytest.approx(np.sqrt(0.1**2 + 0.2**2) / 2)
    near = scores_record(rows[:2], set(), (1,), 6.0, "x", "y")  # type: ignore[arg-type]
    assert near["stderr"][0][0] == pytest.approx(np.sqrt(0.01**2 + 0.03**2) / 2)


def test_shards_share_the_cells(tmp_path):
    every = small_grid(tmp_path / "out", seeds=(0, 1, 2)).cells
    parts = [sharded(every, f"{i}/5") for i in range(5)]
    assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in every)
    assert sharded(every, "") == every
    for wrong in ("5/5", "1", "a/b", "-1/5"):
        with pytest.raises(UserError, match="--shard"):
            sharded(every, wrong)


@pytest.mark.parametrize("count", [{"epochs": 1.0}, {"conversations": 64}])
def test_stages_that_count_in_the_data_are_refused(tmp_path, count):
    runs = small_grid(tmp_path / "out").cells[0].runs
    for counting in runs:
        train = dataclasses.replace(counting.train, **count)
        stages = [dataclasses.replace(run, train=train) if run is counting else run for run in runs]
        with pytest.raises(UserError, match=r"a grid's stages name train\.steps and train\.batch_size"):
            small_grid(tmp_path / "out", stages=stages)


def test_a_recipe_of_three_stages_is_a_grid_too(tmp_path):
    one, two = small_grid(tmp_path / "out").cells[0].runs
    three = dataclasses.replace(
        two,
        train=dataclasses.replace(two.train, stage=3, parts=("vision", "compressor", "projector", "decoder")),
    )
    grid = small_grid(tmp_path / "out", stages=(one, two, three))
    for cell in grid.cells:
        assert [Path(run.out).name for run in cell.runs] == ["stage1", "stage2", "stage3"]
        assert [run.init_from for run in cell.runs] == ["", cell.runs[0].out, cell.runs[1].out]
    with pytest.raises(UserError, match=r"have the numbers \[1, 2, 2\]"):
        small_grid(tmp_path / "out", stages=(one, two, two))


@pytest.mark.parametrize("option", [("--topology", "h100-8"), ("--mfu", "0.5")])
def test_what_a_dry_run_alone_reads_is_refused(option):
    with pytest.raises(UserError, match=f"^{option[0]} goes with --dry-run"):
        execute("sweep", ["configs/llava_sweep.py", *option])


def test_command_line_of_the_published_grid():
    done = subprocess.run(
        [sys.executable, "-m", "launch.sweep", "configs/llava_sweep.py", "--dry-run", "--topology", "h100-8"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "qwen1.5-14b-v576-s0" in done.stdout
    assert "35 cells" in done.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "launch.sweep", "configs/llava_7b_stage1.py", "--dry-run"],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode != 0
    assert "no grid() function" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_tiny_models_from_images_to_a_fitted_law(grid):
    """Four real cells, and two whose weights are missing; then their scores are fitted."""
    bad = Llm(
        "w0",
        weights=str(Path(grid.out, "nowhere")),
        tokenizer=grid.cells[0].runs[0].data.tokenizer,
        size_b=0.016,
        decoder=DECODERS[32],
    )
    llms = tuple(Llm(f"w{w}", size_b=w / 1000, decoder=d) for w, d in DECODERS.items())
    grid = small_grid(grid.out, llms=(*llms, bad))
    outcome = run(grid)
    assert outcome.failed == ["w0-v1-s0", "w0-v4-s0"]
    assert len(outcome.done) == 4
    assert "nowhere" in Path(grid.out, "jobs", "w0-v1-s0.error").read_text()
    table = read_scores(Path(grid.out, "scores.json"))
    assert np.isnan(table.score[0]).all()
    assert np.isfinite(table.score[1:]).all()
    assert fit_law(table, n_starts=16).n_points == 4
    for cell in grid.cells[:4]:
        result = json.loads(result_file(grid, cell.name).read_text())["result"]
        assert [len(curve) for curve in result["losses"].values()] == [3, 4]
        (one,) = result["rows"]
        assert one["loss"] == result["losses"]["stage2"][-1][1] > 0
        assert (one["cell"], one["task"], one["n"]) == (cell.name, "dots", 24)
        assert one["score"] == one["correct"] / 24
