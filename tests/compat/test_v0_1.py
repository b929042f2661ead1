"""Runs, exports, fits and settings that version 0.1 wrote are read as they were meant; see v0_1/README.md."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax.commands import convert
from quecc_jax.config import QueryConfig, RunConfig
from quecc_jax.config.io import from_dict
from quecc_jax.config.renamed import with_new_names
from quecc_jax.evaluate.answers import answer_rows
from quecc_jax.fingerprint import query_fingerprint, tower_fingerprint
from quecc_jax.flops import answer_flops, compressor_cost, train_flops
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_engine, load_vlm
from quecc_jax.train.checkpoint import load_params
from quecc_jax.train.logs.records import read_records
from scaling.__main__ import main as scaling

ROOT = Path(__file__).parent / "v0_1"
EXPECTED = json.loads((ROOT / "expected.json").read_text())
COMPRESSORS = json.loads((ROOT / "compressors.json").read_text())

GO_ON = """
import dataclasses, sys
from quecc_jax.config.io import load_config
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.train.loop import train
from tests.train.runs import trainer_on

config = dataclasses.replace(load_config(sys.argv[1] + "/config.json"), out=sys.argv[1])
batches = make_iterator(config.data, config.model, config.train.batch_size, config.train.seed)
summary = train(config, trainer=trainer_on(config), iterator=batches, progress=lambda _: None)
assert summary["step"] == 180
"""
"""Goes on with the run in a directory."""


def flat(params) -> dict[str, np.ndarray]:
    return {
        "/".join(key.key for key in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def saved(step: int) -> dict[str, np.ndarray]:
    with np.load(ROOT / "parameters.npz") as file:
        return {name.split("/", 1)[1]: file[name] for name in file if name.startswith(f"step{step}/")}


def assert_bits(params: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert params.keys() == expected.keys()
    for name, value in expected.items():
        assert params[name].dtype == value.dtype and np.array_equal(params[name], value), name


@pytest.fixture(scope="module", autouse=True)
def root(request):
    """The settings name their data relative to the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return Path(shutil.copytree(ROOT / "run", tmp_path_factory.mktemp("compat") / "run"))


def test_parameters_load_bit_by_bit(run):
    _, params = load_vlm(run)
    assert_bits(flat(params), saved(140))


def test_the_engine_answers_as_it_did(run):
    engine = load_engine(run)
    questions = [
        Question(
            row["conversations"][0]["value"].replace("<image>", "").strip(),
            (engine.image(ROOT / "data" / row["image"]),),
        )
        for row in json.loads((ROOT / "data" / "rows.json").read_text())
    ]
    asked = engine.run(questions, Limits(8))
    assert list(asked)
    assert asked.texts() == EXPECTED["answers"]


def test_the_evaluation_answers_as_it_did(run):
    config, params = load_vlm(run)
    answers = answer_rows(config, params, max_new_tokens=8, batch_size=8)
    assert [answer.prediction for answer in answers] == EXPECTED["predicted"]


def test_a_stopped_run_goes_on_to_the_same_end(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = shutil.copytree(run, tmp_path / "run")
    # What XLA makes of a program as one module adds up in another order than the modules of version 0.1's time.
    flags = os.environ["XLA_FLAGS"].replace("codegen_split_count=1", "codegen_split_count=32")
    go_on = [sys.executable, "-c", GO_ON, str(out)]
    subprocess.run(go_on, env={**os.environ, "XLA_FLAGS": flags}, check=True)
    records = read_records(out)
    assert [record["step"] for record in records][-3:] == [160, 170, 180]
    # Other processors add up in another order.
    assert records[-1]["loss"] == pytest.approx(EXPECTED["last_loss"], rel=1e-4)
    _, params = load_params(out)
    got, expected, before = flat(params), saved(180), saved(140)
    moved = max(np.abs(expected[name] - before[name]).max() for name in expected)
    assert moved > 1e-3
    # Added to all keys alike, this bias changes no softmax: its gradients are rounding, which Adam enlarges.
    for name in expected.keys() - {"compressor/k_proj/norm/bias"}:
        np.testing.assert_allclose(got[name], expected[name], atol=moved / 10_000, err_msg=name)


def test_the_export_is_the_same_to_the_byte(run, tmp_path):
    convert.export(convert.Export(checkpoint=run, to=tmp_path / "export"))
    files = [path.relative_to(ROOT / "export") for path in (ROOT / "export").rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert (tmp_path / "export" / file).read_bytes() == (ROOT / "export" / file).read_bytes(), file


def test_the_export_comes_back_bit_by_bit(tmp_path):
    out = tmp_path / "imported"
    convert.import_(convert.Import(from_=ROOT / "export", vision=ROOT / "export" / "clip", out=out))
    _, params = load_params(out)
    assert_bits(flat(params), saved(140))


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """What a JSON value holds, by its place."""
    if not isinstance(value, dict | list):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        name: type(value),
        **{k: v for key, part in parts for k, v in leaves(part, f"{name}/{key}").items()},
    }


def test_the_fit_gives_the_same_plan(tmp_path):
    machine = ["--ms", "60", "--chip", "h100", "--batch", "4"]
    assert scaling(["plan", "--fit", str(ROOT / "fit"), *machine, "--out", str(tmp_path)]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert len(plan.pop("training")) == 3 and plan.pop("weights") == "bfloat16"
    found, expected = leaves(plan), leaves(json.loads((ROOT / "plan" / "plan.json").read_text()))
    # Times at the chip's peaks stand apart where others were measured, and here none were.
    added = found.keys() - expected.keys()
    assert found.keys() >= expected.keys() and {found[name] for name in added} == {None}
    assert {name.rpartition("/")[2] for name in added} <= {"cost_at_peaks", "seconds_at_peaks", "efficiency"}
    for name, value in expected.items():
        # Other processors round the last bit otherwise, and regrets are differences.
        near = pytest.approx(value, rel=1e-12, abs=1e-14) if isinstance(value, float) else value
        assert found[name] == near, name


@pytest.mark.parametrize("name", COMPRESSORS)
def test_settings_of_every_compressor_are_read_and_counted_alike(name):
    was = COMPRESSORS[name]
    config = from_dict(RunConfig, with_new_names(was["config"])[0])
    assert config.model.visual_tokens == was["visual_tokens"]
    assert list(compressor_cost(config.model)) == was["cost"]
    assert train_flops(config) == was["train_flops"]
    assert answer_flops(config.model, 8, 12, 6) == was["answer_flops"]


def test_stored_features_stay_known(run):
    config, params = load_vlm(run)
    vision, data = config.model.vision, config.data
    plain = dataclasses.replace(vision, keep_attention=False)
    found = {
        "tower_with_attention": tower_fingerprint(params["vision"], vision, data),
        "tower": tower_fingerprint(params["vision"], plain, data),
    }
    encoders: tuple[QueryConfig, ...] = (
        QueryConfig("decoder"),
        QueryConfig("embeddings"),
        QueryConfig("early_exit", layer=1),
    )
    for query in encoders:
        model = dataclasses.replace(config.model, query=query)
        found[f"query_{query.encoder}"] = query_fingerprint(params, model)
    assert found == EXPECTED["fingerprints"]
