"""What Weights & Biases writes of a run offline, read with its own messages."""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quecc_jax.config import CheckpointConfig
from quecc_jax.errors import UserError
from quecc_jax.train.logs import wandb_run
from quecc_jax.train.logs.records import HELD_OUT_LOSS, SCALARS, read_records
from quecc_jax.train.loop import train
from quecc_jax.train.preemption import Preempted
from tests.tiny import run
from tests.train.runs import Batches, trainer_on
from tests.train.test_interruptions import interrupted_at

Record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record


def messages(data: bytes) -> Iterator[bytes]:
    """The messages of a .wandb file: LevelDB's log format behind seven bytes, in blocks of 32 KiB."""
    block, place, part = 1 << 15, 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield part
            part = b""


def written(file: Path) -> list[Any]:
    """The records of a file that W&B's own process writes, which may still do so when the run has ended."""
    until = time.monotonic() + 60
    while True:
        records = [Record.FromString(message) for message in messages(file.read_bytes())]
        if "exit" in [record.WhichOneof("record_type") for record in records]:
            return records
        assert time.monotonic() < until, f"{file} does not end"
        time.sleep(0.1)


def histories(folder: Path) -> list[tuple[str, list[dict[str, float]]]]:
    """Of each file that W&B wrote: the id of its run, and what was logged."""
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        name, rows = "", list[dict[str, float]]()
        for record in written(file):
            name = record.run.run_id or name
            items = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            if items:
                rows.append(items)
        found.append((name, rows))
    return found


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name, value in {"MODE": "offline", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    config = run(steps=12, log_every=2)
    return dataclasses.replace(
        config,
        out=str(tmp_path / "run"),
        train=dataclasses.replace(config.train, wandb="team/project"),
        checkpoint=CheckpointConfig(every=4),
    )


def test_scalars_arrive_and_a_run_that_goes_on_continues_it(config):
    trainer, out = trainer_on(config), Path(config.out)
    with pytest.raises(Preempted):
        train(config, trainer=trainer, iterator=Batches(config), progress=interrupted_at(6))
    train(config, trainer=trainer, iterator=Batches(config), progress=lambda _: None)
    (first, before), (second, after) = histories(out)
    assert first == second == json.loads((out / wandb_run.ID).read_text())["id"]
    logged = {row["step"]: row for row in (*before, *after)}
    records = {record["step"]: record for record in read_records(out)}
    assert logged.keys() == records.keys() and len(records) == 7
    for step, row in logged.items():
        for name in SCALARS:
            assert row[f"train/{name}"] == pytest.approx(records[step][name])
        assert f"validation/{HELD_OUT_LOSS}" not in row
    # One that begins anew is another run.
    train(
        dataclasses.replace(config, checkpoint=CheckpointConfig(every=4, resume="never")),
        trainer=trainer,
        iterator=Batches(config),
        progress=lambda _: None,
    )
    names = {name for name, _ in histories(out)}
    assert first in names and len(names) == 2 and "" not in names


def test_what_fails_in_it_does_not_end_the_run(config, monkeypatch, capsys):
    def fails(*_):
        raise OSError("No space left on device")

    begun = wandb_run.WandbRun(config, 0)
    monkeypatch.setattr(begun._run, "log", fails)
    begun.add(2, {"train/loss": 1.0})
    begun.add(4, {"train/loss": 1.0})
    said = capsys.readouterr().err
    assert said.count("WARNING: W&B: No space left on device; from step 2 on it lacks what fails") == 1
    begun.close()


def test_without_the_package_it_is_said_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install -r requirements/wandb\.txt"):
        wandb_run.WandbRun(config, 0)
