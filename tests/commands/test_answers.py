"""`launch.generate` and `launch.evaluate`: right answers, right scores, and mistakes as one sentence."""

import dataclasses
import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from quecc_jax import load
from quecc_jax.commands import evaluate, generate
from quecc_jax.commands.cli import execute
from quecc_jax.config import DataConfig, DecoderConfig, ModelConfig, QueccConfig, RunConfig, VisionConfig
from quecc_jax.config.io import load_config
from quecc_jax.data.images import load_pixels, normalise
from quecc_jax.data.sources.pool import write_features
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.errors import UserError, run_cli
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.experiments.testbed.tower import feature_fn
from quecc_jax.load import load_vlm
from quecc_jax.models.towers.vit import VisionTower
from quecc_jax.train.checkpoint import load_params, save_params
from tests.tiny import change_config, random_params

shared_engine = functools.cache(load.load_engine)
ROOT = Path(__file__).parents[2]
VISION = VisionConfig(
    image_size=24, patch_size=6, width=8, depth=2, heads=2, mlp_width=16, select_layer=-2, levels=(1, 2)
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return build_pool("mosaic", "test", tmp_path_factory.mktemp("pool") / "mosaic", 24, 3, 4, m=2)


@pytest.fixture(scope="module")
def run(pool, tmp_path_factory) -> RunConfig:
    """A run on cached features with random parameters, and beside it the run that holds its tower."""
    root = tmp_path_factory.mktemp("runs")
    texts = [turn["value"] for row in pool.rows for turn in row["conversations"]]
    words = train_word_tokenizer(texts, root / "words")
    decoder = DecoderConfig(vocab_size=words, width=16, depth=1, heads=2, kv_heads=2, mlp_width=32)
    model = ModelConfig(
        vision=VISION,
        compressor=QueccConfig(kernel=2, stride=2, heads=2),
        decoder=decoder,
        dtype="float32",
        remat="none",
    )
    data = DataConfig(
        tokenizer=str(root / "words"),
        template="short",
        max_length=64,
        query_length=24,
        images_per_row=2,
        cached_features=True,
    )
    config = RunConfig(out=str(root / "run"), model=model, data=data, tower_from=str(root / "tower"))
    params = random_params(config, seed=2)
    save_params(dataclasses.replace(config, out=str(root / "tower")), {"vision": params.pop("vision")})
    save_params(config, params)
    return config


@pytest.fixture(scope="module")
def image_files(pool, tmp_path_factory) -> list[Path]:
    """The pool's images as files."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, pixels in enumerate(pool.images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def call(monkeypatch, capsys, module, *arguments: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a command line, run in this process."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    try:
        run_cli(lambda: execute(module.__name__.rpartition(".")[2], sys.argv[1:]))
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
    """Programs of equal shapes are shared between the calls of these tests."""
    monkeypatch.setattr(load, "load_engine", shared_engine)


@pytest.fixture
def ask(monkeypatch, capsys, run):
    """The answer that `launch.generate` prints."""

    def one(question: str, *images: Path) -> str:
        options = [part for image in images for part in ("--image", str(image))]
        options += ["--checkpoint", run.out, "--question", question, "--max-new-tokens", "4"]
        status, out, err = call(monkeypatch, capsys, generate, *options)
        assert (status, err, out.count("\n")) == (0, "", 1)
        return out.removesuffix("\n")

    return one


def test_a_image_file_gives_the_features_that_training_cached(run, pool, image_files):
    _, params = load_vlm(run.out)
    cached = write_features(pool, feature_fn(VISION, params["vision"]), 2, "tower")
    stack = np.stack([load_pixels(path, VISION, run.data.image_aspect) for path in image_files])
    pixels = normalise(stack, VISION.pixels)
    fresh = VisionTower(VISION).apply({"params": params["vision"]}, pixels)
    np.testing.assert_allclose(np.asarray(fresh), cached, rtol=2e-3, atol=2e-3)
    assert np.abs(cached[0].astype(float) - cached[1]).max() > 0.1


def test_the_tower_comes_from_the_run_that_holds_it_and_must_fit(run, tmp_path):
    _, params = load_vlm(run.out)
    assert set(params) == {"vision", "compressor", "projector", "decoder"}
    for name, held in {**load_params(run.tower_from)[1], **load_params(run.out)[1]}.items():
        for ours, theirs in zip(jax.tree.leaves(params[name]), jax.tree.leaves(held), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def changed(**settings) -> Path:
        copy = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(run.out, copy)
        change_config(copy, dataclasses.replace(load_config(copy / "config.json"), **settings))
        return copy

    def with_vision(**settings) -> dict:
        return {"model": dataclasses.replace(run.model, vision=dataclasses.replace(VISION, **settings))}

    for settings, message in [
        ({"tower_from": ""}, "names no tower; set tower_from"),
        ({"tower_from": str(tmp_path / "absent")}, "absent/config.json does not exist"),
        ({"tower_from": run.out}, "has no parameters vision"),
        (with_vision(mlp_width=32), r"vision/layers/fc1/bias has shape \(2, 16\) .*expected shape \(2, 32\)"),
        (with_vision(activation="gelu"), "tower has model.vision.activation quick_gelu, and this run gelu"),
        ({"model": dataclasses.replace(run.model, projector="linear")}, "projector/fc2/bias .* not part of"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            load_vlm(changed(**settings))
        assert "\n" not in str(caught.value)


def test_a_question_that_a_limit_cuts_is_told(run, image_files, monkeypatch, capsys):
    asked = "--checkpoint", run.out, "--image", image_files[0], "--max-new-tokens", 2, "--question"
    for words, says in ((30, "data.query_length cut 7 tokens of the question"), (3, "")):
        status, _, err = call(monkeypatch, capsys, generate, *asked, "red " * words)
        assert status == 0 and says in err and bool(says) == ("cut" in err)


def test_a_question_with_words_that_the_tokenizer_does_not_know_is_told(
    run, image_files, monkeypatch, capsys
):
    asked = "--checkpoint", run.out, "--image", image_files[0], "--max-new-tokens", 2, "--question"
    for word, says in (("zebra", "does not know 'zebra'"), ("red", "")):
        status, _, err = call(monkeypatch, capsys, generate, *asked, f"red {word}")
        assert status == 0 and says in err and bool(says) == ("does not know" in err)


def test_a_template_given_by_hand_is_asked_with(run):
    assert load_vlm(run.out, template="llama_3")[0].data.template == "llama_3"
    assert load.load_engine(run.out, template="chatml").config.data.template == "chatml"
    assert load_vlm(run.out)[0].data.template == "short"


def test_parameters_are_not_saved_over_a_training_run(run, tmp_path):
    (tmp_path / "checkpoints" / "500").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a training run"):
        save_params(dataclasses.replace(run, out=str(tmp_path)), {})
    assert (tmp_path / "checkpoints" / "500").is_dir()


def test_evaluation_scores_what_generation_answers(run, ask, image_files, tmp_path, monkeypatch, capsys):
    # Questions of one length, so that few programs are compiled.
    questions = ["what color is the shape in row 1, column 2?", "how many red shapes are in row 2 column 1"]
    asked = [
        (questions[0], image_files[:2]),
        (questions[0], image_files[1::-1]),
        (questions[1], []),
        *((question, [image]) for question in questions for image in image_files[:2]),
    ]
    answers = [ask(question, *images) for question, images in asked]
    assert len(set(answers)) > 5, "answers hardly depend on question and image; the test shows nothing"
    asked, answers = (asked * 2)[:10], (answers * 2)[:10]

    rows: list[dict[str, Any]] = []
    for number, ((question, images), answer) in enumerate(zip(asked, answers, strict=True)):
        truth = answer.upper() if number % 5 < 3 else "another answer"
        rows.append(
            {
                "id": f"row {number}",
                "conversations": [
                    {"from": "human", "value": "<image>\n" * len(images) + question},
                    {"from": "gpt", "value": truth},
                ],
            }
        )
        if images:
            rows[-1]["image"] = [image.name for image in images]
        if number < 5:
            rows[-1]["kind"] = "about a cell"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    status, out, err = call(
        monkeypatch,
        capsys,
        evaluate,
        "--checkpoint",
        run.out,
        "--data",
        tmp_path / "rows.json",
        "--images",
        image_files[0].parent,
        "--out",
        tmp_path / "new" / "scores",
        "--max-new-tokens",
        4,
        "--batch-size",
        4,
    )
    assert status == 0, err
    assert "10/10" in err and "60.0" in out and "about a cell" in out

    lines = [json.loads(x) for x in (tmp_path / "new" / "scores" / "answers.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines] == answers
    assert [line["question"] for line in lines] == [question for question, _ in asked]
    assert [line["truth"] for line in lines] == [row["conversations"][1]["value"] for row in rows]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    assert [line["kind"] for line in lines] == ["about a cell"] * 5 + ["other"] * 5
    results = json.loads((tmp_path / "new" / "scores" / "results.json").read_text())
    assert (results["questions"], results["accuracy"]) == (10, 0.6)
    assert math.isclose(results["standard_error"], math.sqrt(0.6 * 0.4 / 10))
    assert results["kinds"]["other"] == results["kinds"]["about a cell"]
    shown = sum(len(images) for _, images in asked)
    for reuse in results["reuse"].values():
        assert (reuse["misses"], reuse["hits"]) == (2, shown - 2)
    assert "features of images: 2 computed" in out
    assert results["kinds"]["other"]["questions"] == 5 and results["kinds"]["other"]["accuracy"] == 0.6
    assert {p.name for p in (tmp_path / "new" / "scores").iterdir()} == {"answers.jsonl", "results.json"}


def test_a_pool_is_scored_in_the_order_of_its_rows(run, pool, tmp_path, monkeypatch, capsys):
    status, _, err = call(
        monkeypatch,
        capsys,
        evaluate,
        "--checkpoint",
        run.out,
        "--data",
        pool.directory,
        "--out",
        tmp_path,
        "--max-new-tokens",
        4,
        "--batch-size",
        4,
    )
    assert status == 0, err
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(x["id"], x["kind"], x["truth"]) for x in lines] == [
        (row["id"], row["kind"], row["conversations"][1]["value"]) for row in pool.rows
    ]
    right = sum(x["prediction"].lower() == x["truth"].lower() for x in lines)
    assert json.loads((tmp_path / "results.json").read_text())["accuracy"] == right / len(lines)


def test_words_of_every_demo_answer_survive_the_tokenizer(run, pool):
    tokenizer = load_tokenizer(run.data.tokenizer)
    for truth in {row["conversations"][1]["value"] for row in pool.rows}:
        assert tokenizer.decode(tokenizer.encode(truth)) == truth


@pytest.fixture
def bad(tmp_path, run, image_files) -> dict[str, Path]:
    """Things that are not what an option asks for."""
    (tmp_path / "torn.png").write_bytes(image_files[0].read_bytes()[:60])
    (tmp_path / "rows.json").write_text("[{")
    human = {"from": "human", "value": "<image>\nwhat color?"}
    (tmp_path / "silent.json").write_text(json.dumps([{"image": "torn.png", "conversations": [human]}]))
    row = {"image": "torn.png", "conversations": [human, {"from": "gpt", "value": "red"}]}
    (tmp_path / "torn.json").write_text(json.dumps([row]))
    shutil.copytree(run.out, tmp_path / "hollow", ignore=lambda *_: ["checkpoints"])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return {path.stem: path.with_suffix("") for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--checkpoint {run} --question q --image nowhere.png", "image nowhere.png does not exist"),
        ("--checkpoint {run} --question q --image {torn}.png", "torn.png cannot be read"),
        ("--checkpoint nowhere --question q", "nowhere/config.json does not exist"),
        ("--checkpoint {hollow} --question q", "hollow holds no readable checkpoint"),
        ("--checkpoint {run} --question q" + 3 * " --image {png}", "3 images are given.* 2 a question"),
        ("--checkpoint {run} --question <image>", "0 images but 1 <image> placeholders"),
        (
            "--checkpoint {run} --question " + "red" + ",red" * 40,
            "it has .. tokens but data.max_length is 64",
        ),
        ("--checkpoint {run} --question q --max-new-tokens 0", "--max-new-tokens is 0; give at least 1"),
        (
            "--checkpoint {run} --question q --template llama3",
            "no template 'llama3'; choose one of plain, v1",
        ),
        ("--checkpoint {run}", "--question must be given"),
        ("--checkpoint {run}/config.json --question q", "config.json is a file; give the directory of a run"),
        ("--checkpoint {foreign} --question q", "another project's model; .* launch.convert import"),
        ("--checkpoint {run} --question \udcff", "the question, .*, is not UTF-8 text"),
        ("--checkpoint {run} --qestion q", "--qestion is not an option; did you mean --question"),
    ],
)
def test_mistakes_of_generation_are_one_line(run, image_files, bad, monkeypatch, capsys, arguments, message):
    given = arguments.format(run=run.out, png=image_files[0], **bad)
    check_mistake(monkeypatch, capsys, generate, given, message)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--data nowhere", "--data nowhere does not exist"),
        ("--data {rows}.json", "line 1 is not JSON"),
        ("--data {silent}.json", "silent.json, row 1 has no answer to compare with"),
        ("--data {torn}.json", r"torn.json, row 1 \(line 1\): image .*torn.png cannot be read"),
        ("--data {torn}.json --images nowhere", "--images nowhere is not a folder"),
        ("--data {run}", "is not a pool"),
        ("--data {pool} --batch-size 0", "--batch-size is 0"),
        ("--data {pool} --images {pool}", "--images goes with a .json file; the pool .* has its own"),
        ("--data {pool} --tasks pope --images {pool}", "--images goes with a .json file; benchmarks have"),
        ("--data {pool} --seed 3", "--seed goes with --tasks; name benchmarks or leave it out"),
        ("--data {pool} --seed -1", "--seed is -1; give at least 0"),
        ("--data {pool} --template vicuna", "no template 'vicuna'; choose one of plain, v1"),
        ("--data {pool} --out {silent}.json", "--out .* cannot be written"),
        ("--data {pool} --batch-size many", "batch-size.*'many'"),
    ],
)
def test_mistakes_of_evaluation_are_one_line(run, pool, bad, monkeypatch, capsys, arguments, message):
    given = f"--checkpoint {run.out} --out {bad['rows'].parent} "
    given += arguments.format(run=run.out, pool=pool.directory, **bad)
    check_mistake(monkeypatch, capsys, evaluate, given, message)
    assert not list(bad["rows"].parent.glob("results.json"))


def check_mistake(monkeypatch, capsys, module, arguments: str, message: str) -> None:
    status, out, err = call(monkeypatch, capsys, module, *arguments.split())
    assert status == 1 and out == ""
    lines = [line for line in err.splitlines() if "answering" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert re.search(message, lines[0]), lines[0]


def test_the_process_prints_one_line_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.generate", "--checkpoint", str(tmp_path), "--question", "q"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path}/config.json does not exist; is this the directory of a run?\n"
