"""Command lines: overrides reach the config, mistakes become one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quecc_jax.commands.cli import parse_run
from quecc_jax.errors import UserError

ROOT = Path(__file__).parents[2]

CONFIG = """
from quecc_jax.config import DataConfig, RunConfig, SourceConfig, TrainConfig

def config():
    return RunConfig(data=DataConfig(sources=(SourceConfig(path="a"),)), train=TrainConfig(steps=7))
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "good.py"
    path.write_text(CONFIG)
    return str(path)


def test_options_override_the_file_and_nothing_else(config_file):
    config = parse_run([config_file], "prog")
    assert config.train.steps == 7 and config.data.sources[0].path == "a"
    changed = parse_run(
        [
            config_file,
            "--optimizer.learning-rate",
            "1e-4",
            "--model.vision.levels",
            "1",
            "2",
            "--data.sources.0.path",
            "b",
            "--checkpoint.resume=must",
        ],
        "prog",
    )
    assert changed.optimizer.learning_rate == 1e-4
    assert changed.model.vision.levels == (1, 2)
    assert changed.data.sources[0].path == "b"
    assert changed.checkpoint.resume == "must"
    assert changed.train == config.train and changed.model.decoder == config.model.decoder


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--optimizer.lerning-rate", "1"],
            r"^--optimizer.lerning-rate is not an option; did you mean --optimizer.learning-rate\?$",
        ),
        (["--train.stepz=3"], "--train.stepz is not an option; did you mean --train.steps"),
        (["--zzzzzz", "3"], "^--zzzzzz is not an option; see --help$"),
        (["stray"], "^stray is not an option"),
        (["--train.steps", "many"], "train.steps.*'many'"),
        (["--train.steps", "2.5"], r"train.steps.*'2\.5'"),
        (["--train.steps"], "train.steps"),
        (["--train.stage", "7"], "train.stage.*0.*1.*2"),
        (["--train.grad_accum_steps", "3"], "batch_size 256 does not split into 3"),
    ],
)
def test_bad_options_are_one_sentence(config_file, options, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_run([config_file, *options], "prog")
    assert "\n" not in str(caught.value) and "──" not in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def config(:\n", "line 1: "),
        ("x = 1\n", r"no config\(\) function"),
        (
            "from quecc_jax.config import RunConfig\ndef config():\n    return RunConfig(ouut='a')\n",
            "line 3: TypeError.*'ouut'",
        ),
        (
            "from quecc_jax.config import *\ndef config():\n    return RunConfig(train=TrainConfig(steps='a'))\n",
            "train.steps is 'a' but must be a whole number",
        ),
        ("import nothere\n", "line 1: ModuleNotFoundError.*nothere"),
        ("def config():\n    return 3\n", "returned int, not a RunConfig"),
        ("def config():\n    return {}.missing\n", "line 2: AttributeError.*missing"),
    ],
)
def test_broken_config_files_are_one_sentence(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        parse_run([str(path)], "prog")
    assert str(path) in str(caught.value)


def test_a_missing_config_file_names_its_nearest_neighbour(config_file):
    with pytest.raises(UserError, match=r"does not exist; did you mean good\.py"):
        parse_run([config_file.replace("good", "goood")], "prog")
    for argv in ([], ["--train.steps", "3"]):
        with pytest.raises(UserError, match="name a config file first"):
            parse_run(argv, "prog")


def test_help_needs_no_config_file_and_shows_types_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_run(["--help"], "python -m launch.train")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--optimizer.learning-rate FLOAT" in text and "(default: 0.001)" in text
    assert "{auto,never,must}" in text


@pytest.mark.parametrize(
    "options, error",
    [
        (["--train.stepz", "3"], "--train.stepz is not an option; did you mean --train.steps?"),
        (["--data.tokenizer", "nowhere"], "data.tokenizer 'nowhere' is not a directory"),
    ],
)
def test_the_process_exits_with_one_line_and_no_traceback(config_file, tmp_path, options, error):
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", config_file, "--out", str(tmp_path / "run"), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and error in last
