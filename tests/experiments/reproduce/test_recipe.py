"""What is reproduced: the scripts' settings, the slices' predictions, the published files."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import pods
from configs import llava, table1
from quecc_jax.aot.chips import price_of
from quecc_jax.commands.config_file import load_config_file
from quecc_jax.commands.options import parse_run
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.evaluate.published import published
from quecc_jax.evaluate.tasks import TASKS as EVERY
from quecc_jax.experiments.reproduce import cost
from quecc_jax.experiments.reproduce.downloads import BENCHMARKS, DOWNLOADS, TRAINING
from quecc_jax.experiments.reproduce.steps import TASKS, Recipe, steps_of
from quecc_jax.experiments.reproduce.verdict import cells
from tests.config.test_configs import SCRIPTS, in_the_scripts_words

ROOT = Path(__file__).parents[3]


def resolve(argv):
    return parse_run(argv, "train")


@pytest.mark.parametrize("v", table1.CHOICES)
@pytest.mark.parametrize("stage", [1, 2])
def test_both_stages_are_the_scripts(stage, v):
    config = load_config_file(f"configs/table1.py:stage{stage}-v{v}")
    validate(config)
    assert in_the_scripts_words(config) == SCRIPTS[stage] and config.model.visual_tokens == v
    rows = {1: (256, 2181, "pad"), 2: (128, 5198, "grouped")}[stage]
    assert (config.train.batch_size, config.train.steps, config.data.batching) == rows
    assert config.data.image_decoding == "original" and config.optimizer.clip_norm == 1e9
    base = llava.one_each(llava.stage1("vicuna-7b", config.out, v))
    if stage == 1:
        undone = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, image_decoding="upright"),
            optimizer=dataclasses.replace(config.optimizer, clip_norm=1.0),
        )
        assert undone == base
    small = load_config_file(f"configs/table1.py:stage{stage}-v{v}-small")
    validate(small)
    assert small.model.visual_tokens == v and small.data.batching == config.data.batching


@pytest.mark.parametrize("name", ["stage3-v16", "stage1-v9", "stage1", "stage1-v16-large", "table"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match=rf"{name} is not stage1-vV or stage2-vV, with V one of 1, 4, 16, 36"):
        load_config_file(f"configs/table1.py:{name}")


def test_slices_have_the_settings_and_seconds_that_were_compiled():
    compiled = json.loads((ROOT / "docs/pods.json").read_text())["rows"]
    answers = json.loads((ROOT / "docs/pods_answers.json").read_text())["rows"]
    rates = {
        (row["slice"], row["tensor"]): row["answers_per_second"]
        for row in answers
        if row["weights"] == "bfloat16" and row["visual_tokens"] == 1 and row["batch"] == 32
    }
    for name, one in cost.SLICES.items():
        for stage in (1, 2):
            rows = [r for r in compiled if (r["model"], r["stage"], r["slice"]) == ("7b", stage, name)]
            assert sorted(row["visual_tokens"] for row in rows) == [1, 4, 16, 36]
            for row in rows:
                assert row["step_seconds"] == pytest.approx(one.step_seconds[stage - 1], rel=1e-3)
                assert row["chips"] == one.chips and row["fits"]
            said = one.training[stage - 1].replace("accum-steps", "accum_steps").replace("grad-", "grad_")
            assert said == pods.SETTINGS["7b", stage, name]
        slice_, tensor, chips = {"v5e": ("v5e-16", 8, 16), "v5p": ("v5p-8", 4, 4)}[one.chip]
        assert one.answers_per_second == pytest.approx(rates[slice_, tensor] * one.chips / chips, rel=1e-3)
        mesh = [int(word) for word in one.answering.split()[1::2]]
        assert mesh[0] * mesh[1] * mesh[2] == one.chips and mesh[1:] == [1, tensor]


def test_hours_and_dollars_are_those_of_the_pods_table():
    runs = [load_config_file(f"configs/table1.py:stage{stage}-v16") for stage in (1, 2)]
    one, two, answers = cost.hours(cost.SLICES["v5e-16"], runs)
    assert (round(one, 1), round(two, 1)) == (5.5, 8.6) and 0.3 < answers < 0.4
    told = cost.estimate("v5e-16", runs, None)
    assert "stage 1 5.5 h, stage 2 at most 8.6 h" in told and "nothing was measured" in told
    assert f"${16 * (one + two + answers) * 1.2:,.0f} at $1.2" in told
    assert "at $0.5 (as given)" in cost.estimate("v5e-16", runs, 0.5)
    assert cost.questions() == 107394 + 8000 + 5000 + 4241 + 2374 + 8910 + 12578 + 4377
    with pytest.raises(
        UserError, match="--slice v5e-17: nothing was compiled for it; choose from v5e-16, v5e-64"
    ):
        cost.find_slice("v5e-17")


def test_the_disk_that_it_takes():
    runs = [load_config_file(f"configs/table1.py:stage{stage}-v16") for stage in (1, 2)]
    packed, unpacked, kept = cost.disk(DOWNLOADS, runs)
    assert 125 < packed < 135 and 100 < unpacked < packed
    # Three checkpoints of 6.7 billion numbers and two slots of each, in float32.
    assert 3 * 12 * 6.7 < kept < 3 * 12 * 6.7 + 60


def test_the_benchmarks_are_those_of_the_paper_s_table():
    assert sorted(EVERY[task].column for task in TASKS) == sorted(published()["columns"])
    row = next(r for r in published()["rows"] if (r["method"], r["visual_tokens"]) == ("QueCC", 16))
    assert len(row["scores"]) == len(TASKS) == 8


def test_downloads_bring_what_the_recipe_and_the_benchmarks_read(tmp_path):
    """What is unpacked, linked or put somewhere has the names that configs and tasks ask for."""
    names = [download.name for download in DOWNLOADS]
    assert len({*names}) == len(names) and {*TRAINING, *BENCHMARKS} <= {*names}
    paths = [remote.path for download in DOWNLOADS for remote in download.remotes]
    assert len({*paths}) == len(paths)
    places = [made.rstrip("/") for download in DOWNLOADS for made in download.makes]
    places += paths + [second for download in DOWNLOADS for second, _ in download.links]
    for file in (file for task in TASKS for file in EVERY[task].files):
        wanted = f"eval/{file.path}".rstrip("/")
        assert any(p == wanted or p.startswith(f"{wanted}/") for p in places) or wanted.endswith(
            "test2015.jsonl"
        )
    sources = [load_config_file(f"configs/table1.py:stage{stage}-v16").data.sources[0] for stage in (1, 2)]
    assert {source.path for source in sources} <= {*paths}
    for folder in ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K_2"):
        assert f"data/{folder}" in places


def test_checksums_are_whole_and_say_where_they_were_read():
    known = [one for download in DOWNLOADS for one in download.remotes if one.sha256]
    assert len(known) == 8
    for one in known:
        assert len(one.sha256) == 64 and int(one.sha256, 16) and one.source
    page = (ROOT / "docs/reproduce.md").read_text()
    for one in known:
        assert one.sha256[:12] in page and one.source in page, one.path


def test_steps_name_the_kit_s_directory_and_do_not_depend_on_it(tmp_path):
    def made(root, **more):
        return {step.name: step for step in steps_of(Recipe(16, **more), root, resolve)}

    one, other = made(tmp_path / "a"), made(tmp_path / "somewhere/else")
    assert one["stage2"].command != other["stage2"].command
    assert {n: s.settings for n, s in one.items()} == {n: s.settings for n, s in other.items()}
    told = made(tmp_path, training=(["--mesh.tensor", "2"], []), answering=["--mesh.tensor", "4"])
    assert told["stage1"].device == ("--mesh.tensor", "2") and told["evaluate"].device[-2:] == (
        "--mesh.tensor",
        "4",
    )
    assert {n: s.settings for n, s in told.items()} == {n: s.settings for n, s in one.items()}
    other = made(tmp_path, more=([], ["--data.bad-rows", "skip"]))
    assert [name for name in one if one[name].settings != other[name].settings] == ["stage2"]
    assert one["stage1"].last == 2181 and one["stage2"].needs[0] == "stage1"
    order = list(one)
    for step in one.values():
        assert all(order.index(name) < order.index(step.name) for name in step.needs)


def test_the_page_has_the_numbers_that_are_computed(tmp_path):
    page = (ROOT / "docs/reproduce.md").read_text().splitlines()
    runs = [load_config_file(f"configs/table1.py:stage{stage}-v16") for stage in (1, 2)]
    for name, one in cost.SLICES.items():
        first, second, answers = cost.hours(one, runs)
        spent = (first + second + answers) * one.chips
        usd, _ = price_of(one.chip, None)
        line = f"| {name} | {first:.1f} h | {second:.1f} h | {answers:.2f} h | {spent:,.0f} | ${spent * usd:,.0f} |"
        assert line in page
    for v in table1.CHOICES:
        told = (f"{cell.paper:.1f} ± {cell.tolerance:.1f}" for cell in cells(v, None, {}, tmp_path))
        assert f"| V = {v} | {' | '.join(told)} |" in page
