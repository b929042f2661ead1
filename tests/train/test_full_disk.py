"""Disks that are full, gone or not to be written while a run trains: one sentence, and nothing lost but time."""

import dataclasses
import shutil
import struct

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from quecc_jax.config import CheckpointConfig
from quecc_jax.errors import UserError
from quecc_jax.train.logs.events import EventFile
from quecc_jax.train.logs.records import read_records
from quecc_jax.train.loop import train
from quecc_jax.train.resume import Checkpoints
from tests.small_disk import fill, small_disk
from tests.train.runs import Batches


def quiet(config, trainer, progress=lambda _: None):
    return train(config, trainer=trainer, iterator=Batches(config), progress=progress)


def outcome(config, trainer):
    with Checkpoints(config) as checkpoints:
        state = jax.device_get(checkpoints.restore(trainer.abstract_state, Batches(config)))
    return jax.tree.leaves(state), [(record["step"], record["loss"]) for record in read_records(config.out)]


@pytest.fixture(scope="module")
def straight(base, trainer, tmp_path_factory):
    config = dataclasses.replace(base, out=str(tmp_path_factory.mktemp("straight") / "run"))
    quiet(config, trainer)
    return outcome(config, trainer)


@pytest.mark.parametrize("every, full_at", [(4, 1), (4, 6), (4, 16), (1000, 3)])
def test_a_full_disk_ends_the_run_and_with_space_it_goes_on_bit_by_bit(
    base, trainer, straight, tmp_path, capfd, every, full_at
):
    """Full before the first save, between saves, before the last, and where lines of the log alone are written."""
    with small_disk(tmp_path / "disk", 2000) as disk:
        config = dataclasses.replace(
            base, out=str(disk / "run"), checkpoint=CheckpointConfig(every=every, keep=2)
        )
        ballast = []
        with pytest.raises(UserError) as said:
            quiet(config, trainer, lambda r: ballast.append(fill(disk)) if r["step"] == full_at else None)
        advice = "make room there and start the same command again"
        assert str(said.value) == f"{config.out}: No space left on device; {advice}"
        err = capfd.readouterr().err
        assert "Traceback" not in err and "Error" not in err and err.count("\n") <= 1
        with pytest.raises(UserError, match="No space left on device"):
            quiet(config, trainer)
        ballast[0].unlink()
        assert quiet(config, trainer)["step"] == 20
        leaves, losses = outcome(config, trainer)
    for a, b in zip(leaves, straight[0], strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    assert losses == straight[1]


def test_a_save_that_failed_is_told_at_the_next_step(base, trainer, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", 2000) as disk:
        config = dataclasses.replace(base, out=str(disk / "run"))
        seen = []

        def watch(record):
            seen.append(record["step"])
            if record["step"] == 3:
                fill(disk)
            if record["step"] == 5:
                # By now the save after step 4 has failed.
                with pytest.raises(ValueError, match="No space left"):
                    checkpoints[0]._begun.result()

        checkpoints, enter = [], Checkpoints.__enter__

        def entered(self):
            checkpoints.append(self)
            return enter(self)

        monkeypatch.setattr(Checkpoints, "__enter__", entered)
        with pytest.raises(UserError, match="No space left"):
            quiet(config, trainer, watch)
        assert seen[-1] == 5


def test_a_run_whose_directory_is_deleted_says_so(config, trainer):
    with pytest.raises(
        UserError, match=f"^{config.out}: No such file or directory; do not move or delete it"
    ):
        quiet(config, trainer, lambda r: shutil.rmtree(config.out) if r["step"] == 6 else None)


def crc32c(content):
    crc = 2**32 - 1
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ (2**32 - 1)


def events(path):
    """The events of a file, read by the format's own description."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack_from("<Q", content)
        head, body = content[:8], content[12 : 12 + length]
        sums = struct.unpack("<I", content[8:12]) + struct.unpack_from("<I", content, 12 + length)
        for part, has in zip((head, body), sums, strict=True):
            crc = crc32c(part)
            assert has == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32
        found.append(Event.FromString(body))
        content = content[16 + length :]
    return found


def test_plots_with_a_gap_while_the_disk_is_full(tmp_path, capfd):
    with small_disk(tmp_path / "disk", 200) as disk:
        file = EventFile(disk / "tensorboard", 0)
        file.add(1, {"train/loss": 1.0})
        ballast = fill(disk)
        for step in range(2, 500):
            file.add(step, {"train/loss": 1.0})
        ballast.unlink()
        file.add(500, {"train/loss": 2.0})
        file.close()
        head, *rest = events(file.path)
    assert head.file_version == "brain.Event:2"
    steps = [event.step for event in rest]
    assert 10 < len(steps) < 400 and steps == [*range(1, len(steps)), 500]
    (value,) = rest[-1].summary.value
    assert value.tag == "train/loss" and value.simple_value == 2.0
    said = f"WARNING: {file.path}: No space left on device; from step {len(steps)} on TensorBoard lacks what fails\n"
    assert capfd.readouterr().err == said


def test_what_an_earlier_process_plotted_beyond_the_restored_step_is_hidden(tmp_path):
    file = EventFile(tmp_path, 7)
    file.add(8, {"train/loss": 1.0})
    file.close()
    _, start, eight = events(file.path)
    assert (start.step, start.session_log.status) == (8, start.session_log.START) and eight.step == 8
