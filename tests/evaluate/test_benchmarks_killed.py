"""A benchmark run that is killed goes on, on the whole model that the original project's files hold."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quecc_jax.config.io import load_config
from quecc_jax.convert.run import import_weights
from tests.evaluate.standins import STANDINS
from tests.golden_pack import unpack
from tests.tiny import change_config

ROOT = Path(__file__).parents[2]
NAMES = ("pope", "gqa", "ai2d")


def start(run: Path, data: Path, out: Path) -> subprocess.Popen:
    arguments = [
        "--checkpoint",
        run,
        "--tasks",
        ",".join(NAMES),
        "--data",
        data,
        "--out",
        out,
        "--max-new-tokens",
        4,
        "--batch-size",
        2,
        "--html",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "launch.evaluate", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(out: Path, name: str) -> list[str]:
    path = out / name / "answers.jsonl"
    return path.read_text().split("\n")[:-1] if path.is_file() else []


@pytest.mark.slow
def test_a_run_killed_between_answers_ends_as_one_that_was_not(tmp_path):
    unpack(ROOT / "tests/golden/llava_tiny/arrays.xz", tmp_path / "golden")
    run, data = tmp_path / "run", tmp_path / "data"
    import_weights(tmp_path / "golden", run)
    config = load_config(run / "config.json")
    short = dataclasses.replace(config.data, max_length=160)
    change_config(run, dataclasses.replace(config, data=short))
    for name in NAMES:
        STANDINS[name](data)
    whole = start(run, data, tmp_path / "whole")
    assert whole.wait(300) == 0, whole.communicate()[1]

    killed = start(run, data, tmp_path / "out")
    while len(answers(tmp_path / "out", "pope")) < 4 and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    before = answers(tmp_path / "out", "pope")
    assert 4 <= len(before) < 12 and not (tmp_path / "out/results.json").exists()

    again = start(run, data, tmp_path / "out")
    assert again.wait(300) == 0, again.communicate()[1]
    assert answers(tmp_path / "out", "pope")[: len(before)] == before
    results = [json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("whole", "out")]
    for name in NAMES:
        assert answers(tmp_path / "whole", name) == answers(tmp_path / "out", name)
        one, two = (result["tasks"][name] for result in results)
        assert one["metrics"] == two["metrics"] and one["questions"] == two["questions"]
    prompt = json.loads(before[0])["prompt"]
    assert prompt.startswith("<s>A chat between") and prompt.endswith(" ASSISTANT:") and "<image>\n" in prompt
