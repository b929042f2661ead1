"""A killed run continues as if nothing had happened: every bit of the state, every row of the data."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from quecc_jax.config.io import save_config
from quecc_jax.train.logs.records import read_records
from quecc_jax.train.resume import Checkpoints
from tests.train.runs import Batches, train_logged

ROOT = Path(__file__).parents[2]


def ids(path: Path) -> list[list[int]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kill_after(config, log: Path, batches: int, checkpoint: int) -> None:
    """Runs the training in a process of its own and kills it between batch `batches` and the next."""
    settings = log.with_suffix(".json")
    save_config(config, settings)
    arguments = [sys.executable, "-m", "tests.train.runs", str(settings), str(log), str(batches)]
    saved = Path(config.out) / "checkpoints" / str(checkpoint)
    with subprocess.Popen(arguments, cwd=ROOT, env=os.environ.copy()) as process:
        deadline = time.monotonic() + 240
        while not (saved.is_dir() and log.exists() and len(ids(log)) == batches):
            assert process.poll() is None, "the process ended before it was killed"
            assert time.monotonic() < deadline, "no checkpoint in time"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_killed_and_resumed_equals_straight_bit_by_bit(config, trainer, tmp_path):
    straight = dataclasses.replace(config, out=str(tmp_path / "straight"))
    train_logged(straight, trainer, tmp_path / "straight.ids", 20)

    broken = dataclasses.replace(config, out=str(tmp_path / "broken"))
    kill_after(broken, tmp_path / "killed.ids", batches=14, checkpoint=12)
    assert len(read_records(broken.out)) >= 12
    summary = train_logged(broken, trainer, tmp_path / "resumed.ids", 20)
    assert summary["step"] == 20

    expected = ids(tmp_path / "straight.ids")
    assert ids(tmp_path / "killed.ids") == expected[:14]
    assert ids(tmp_path / "resumed.ids") == expected[12:]
    assert sorted(list(itertools.chain(*expected))[:50]) == list(range(50))
    states = []
    for run in (straight, broken):
        with Checkpoints(run) as checkpoints:
            states.append(jax.device_get(checkpoints.restore(trainer.abstract_state, Batches(run))))
    assert int(states[0].step) == int(states[1].step) == 20
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    losses = [[(r["step"], r["loss"]) for r in read_records(run.out)] for run in (straight, broken)]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, 21))
