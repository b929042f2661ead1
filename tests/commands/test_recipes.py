"""Recipes: config files whose `stages()` gives runs that are trained one after another."""

from pathlib import Path

import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.commands.config_file import load_config_file, load_stages
from quecc_jax.commands.options import parse_stages
from quecc_jax.commands.train import Options
from quecc_jax.errors import UserError
from quecc_jax.train.checkpoint import load_params
from quecc_jax.train.loop import train
from quecc_jax.train.preemption import Preempted
from quecc_jax.train.run_dir import load_run_config
from tests.experiments.small_grid import write_data

RECIPE = """
import dataclasses
from tests.experiments.small_grid import small_grid


def stages(width="32"):
    grid = small_grid({out!r}, steps=2)
    one, two = next(cell for cell in grid.cells if cell.llm == "w" + width).runs
    three = dataclasses.replace(
        two,
        out=two.out.replace("stage2", "stage3"),
        init_from="",
        train=dataclasses.replace(
            two.train, stage=3, steps=2, parts=("vision", "compressor", "projector", "decoder")
        ),
        optimizer=dataclasses.replace(two.optimizer, vision_learning_rate=2e-3),
    )
    return {returns}
"""


@pytest.fixture
def recipe(tmp_path):
    def write(returns: str = "[one, two, three]") -> str:
        if not (tmp_path / "data").exists():
            write_data(tmp_path / "data")
        file = tmp_path / "recipe.py"
        file.write_text(RECIPE.format(out=str(tmp_path / "out"), returns=returns))
        return str(file)

    return write


def test_each_stage_starts_from_the_one_before(recipe, tmp_path):
    stages = load_stages(recipe())
    assert [Path(run.out).name for run in stages] == ["stage1", "stage2", "stage3"]
    assert [run.init_from for run in stages] == ["", stages[0].out, stages[1].out]
    assert load_config_file(recipe() + ":3") == stages[2]
    other = load_config_file(recipe() + ":64:2")
    assert other.model.decoder.width == 64 and other.train.stage == 2
    assert [run.model.decoder.width for run in load_stages(recipe() + ":64")] == [64] * 3


def test_settings_hold_in_all_stages_but_for_the_directory_and_the_start(recipe, tmp_path):
    given = ["--out", "runs/x", "--init-from=weights/y", "--train.seed", "7"]
    stages = [one.config for one in parse_stages(Options, [recipe(), *given], "train")]
    assert [run.out for run in stages] == ["runs/x/stage1", "runs/x/stage2", "runs/x/stage3"]
    assert [run.init_from for run in stages] == ["weights/y", "runs/x/stage1", "runs/x/stage2"]
    assert [run.train.seed for run in stages] == [7] * 3


def test_stages_elsewhere_start_from_each_other_and_not_from_those_of_the_file(recipe, tmp_path):
    file = recipe("[one, two, dataclasses.replace(three, init_from=one.out, tower_from=two.out)]")
    stages = [one.config for one in parse_stages(Options, [file, "--out", "runs/x"], "train")]
    assert [run.init_from for run in stages[1:]] == ["runs/x/stage1"] * 2
    assert stages[2].tower_from == "runs/x/stage2"


def test_a_stage_that_says_its_start_keeps_it(recipe):
    file = recipe("[one, two, dataclasses.replace(three, init_from='weights/z')]")
    stages = [one.config for one in parse_stages(Options, [file, "--init-from", "weights/y"], "train")]
    assert [run.init_from for run in stages] == ["weights/y", stages[0].out, "weights/z"]


def test_all_stages_are_trained_and_none_twice(recipe, tmp_path, capsys):
    file = recipe()
    execute("train", [file])
    said = capsys.readouterr()
    runs = [tmp_path / "out" / "cells" / "w32-v1-s0" / f"stage{n}" for n in (1, 2, 3)]
    for run, steps in zip(runs, (3, 2, 2), strict=True):
        assert load_run_config(run).train.steps == steps and f"{run}: step {steps}," in said.out
    assert "stage 3 of 3, vision and compressor and projector and decoder" in said.err
    two, three = (load_params(run, ["projector"])[1]["projector"] for run in runs[1:])
    assert (two["fc1"]["kernel"] != three["fc1"]["kernel"]).any()
    assert list(load_params(runs[2], ["vision"])[1]) == ["vision"]
    written = [(run / "metrics.jsonl").read_bytes() for run in runs]
    execute("train", [file])
    again = capsys.readouterr().out
    assert "nan" not in again and again.count("nothing was left to do") == 3
    assert [(run / "metrics.jsonl").read_bytes() for run in runs] == written


def test_no_stage_follows_one_that_was_stopped(recipe, tmp_path, capsys, monkeypatch):
    seen: list[str] = []

    def stopped(config):
        seen.append(Path(config.out).name)
        if seen[-1] == "stage2":
            raise Preempted(f"{config.out}: saved after step 1 of 2 and stopped on SIGTERM")
        return train(config)

    monkeypatch.setattr("quecc_jax.train.loop.train", stopped)
    execute("train", [recipe()])
    assert seen == ["stage1", "stage2"] and "the same command continues it" in capsys.readouterr().out


REFUSED = [
    ("[one, two, three]", ":4", "has 3 stages and this takes one of them; name it, as in .*recipe.py:1"),
    ("[one, two, three]", "", "has 3 stages and this takes one of them"),
    ("[]", ":1", r"stages\(\) did not return a list of RunConfig"),
    ("one", ":1", r"stages\(\) did not return a list of RunConfig"),
    ("[one, 2]", ":1", r"stages\(\) did not return a list of RunConfig"),
    ("[two, one, two]", ":1", "its stages repeat out"),
    ("[one, dataclasses.replace(one, out='x')]", ":1", "its stages repeat train.stage 1, 1"),
    ("[one, dataclasses.replace(two, out=2)]", ":1", "out is 2"),
]


@pytest.mark.parametrize("returns, number, said", REFUSED, ids=[f"{r}{n}" for r, n, _ in REFUSED])
def test_what_is_no_recipe_is_refused(recipe, returns, number, said):
    with pytest.raises(UserError, match=said):
        load_config_file(recipe(returns) + number)


def test_a_grid_of_a_recipe_is_told(recipe):
    with pytest.raises(
        UserError, match=r"has no grid\(\) function; it has stages\(\), which other commands read"
    ):
        execute("sweep", [recipe()])


def test_a_broken_setting_is_told_before_the_first_stage_begins(recipe, tmp_path):
    file = recipe("[one, two, dataclasses.replace(three, train=dataclasses.replace(three.train, parts=()))]")
    with pytest.raises(UserError, match="stage 3 is past 2"):
        execute("train", [file])
    assert not (tmp_path / "out" / "cells").exists()
