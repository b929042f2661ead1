"""Several processes train one run: their share of the data, preemption, deaths, other numbers of them."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.config.io import save_config
from quecc_jax.train.logs.records import read_records
from tests.processes import Processes
from tests.train.runs import train_logged
from tests.train.test_resume import ids

SAME = 2e-5
"""Relative difference allowed between losses in float32 whose sums run in other orders."""


def hosts_of(config: RunConfig, count: int, folder: Path, devices: int = 2, **settings: Any) -> Processes:
    """Processes that train one run."""
    folder.mkdir()
    save_config(config, folder / "config.json")
    given = {
        "config": str(folder / "config.json"),
        "ids": str(folder),
        "pause": 0.0,
        "stuck": None,
        "join_s": 240,
        "heartbeat_s": 60,
        "stall_s": 600.0,
        **settings,
    }
    (folder / "settings.json").write_text(json.dumps(given))
    return Processes(["tests.train.host", folder / "settings.json"], count, folder, devices)


def wait_for_step(hosts: Processes, config: RunConfig, step: int) -> None:
    hosts.wait_for(lambda: any(r["step"] >= step for r in read_records(config.out)))


def losses(config: RunConfig) -> list[float]:
    records = read_records(config.out)
    assert [r["step"] for r in records] == list(range(1, config.train.steps + 1))
    return [r["loss"] for r in records]


@pytest.fixture
def several(config, trainer, tmp_path) -> tuple[RunConfig, list[float], list[list[int]]]:
    """A run over all devices there are, and the losses and batches of the same run on one device."""
    alone = dataclasses.replace(config, out=str(tmp_path / "alone"))
    train_logged(alone, trainer, tmp_path / "alone.ids", 20)
    config = dataclasses.replace(config, out=str(tmp_path / "several"), mesh=MeshConfig())
    return config, losses(alone), ids(tmp_path / "alone.ids")


def test_two_processes_end_when_one_is_killed_and_one_process_goes_on(several, trainer, tmp_path):
    config, expected, batches = several
    with hosts_of(config, 2, tmp_path / "two", pause=0.3) as hosts:
        wait_for_step(hosts, config, 5)
        hosts.processes[1].send_signal(signal.SIGKILL)
        survivor, killed = hosts.statuses(120)
        assert killed == -signal.SIGKILL and survivor not in (0, -signal.SIGKILL), hosts.said()
        assert "lost the others" in hosts.said(0) or "another task died" in hosts.said(0)
        for number in range(2):
            # Half of every batch, in the order that one process would have read it.
            read = ids(hosts.folder / f"{number}.ids")
            assert len(read) >= 5 and read == [b[4 * number :][:4] for b in batches[: len(read)]]
    train_logged(config, trainer, tmp_path / "rest.ids", 20)
    rest = ids(tmp_path / "rest.ids")
    assert 0 < len(rest) < 20 and rest == batches[-len(rest) :]
    np.testing.assert_allclose(losses(config), expected, rtol=SAME)


@pytest.mark.slow
def test_two_processes_stop_together_on_a_signal_to_one_and_one_process_goes_on(several, trainer, tmp_path):
    config, expected, batches = several
    with hosts_of(config, 2, tmp_path / "two", pause=0.3) as hosts:
        wait_for_step(hosts, config, 2)
        hosts.processes[1].send_signal(signal.SIGTERM)
        assert hosts.statuses(240) == [0, 0], hosts.said()
        reached = len(read_records(config.out))
        assert 2 < reached < 20
        for number in range(2):
            out = (hosts.folder / f"{number}.out").read_text()
            assert f"saved after step {reached} of 20" in out
            # Half of every batch, in the order that one process would have read it.
            assert ids(hosts.folder / f"{number}.ids") == [b[4 * number :][:4] for b in batches[:reached]]
    assert (Path(config.out) / "checkpoints" / str(reached)).is_dir()
    train_logged(config, trainer, tmp_path / "rest.ids", 20)
    assert ids(tmp_path / "rest.ids") == batches[reached:]
    np.testing.assert_allclose(losses(config), expected, rtol=SAME)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 2])
def test_four_processes_end_when_one_is_killed_and_two_go_on(several, tmp_path, killed):
    config, expected, batches = several
    # Parameters stay within a process: their gathering over eight devices of two cores takes minutes.
    config = dataclasses.replace(config, mesh=MeshConfig(-1, 2, 1))
    with hosts_of(config, 4, tmp_path / "four", pause=0.3) as hosts:
        wait_for_step(hosts, config, 5)
        hosts.processes[killed].send_signal(signal.SIGKILL)
        statuses = hosts.statuses(120)
        assert statuses[killed] == -signal.SIGKILL and 0 not in statuses, hosts.said()
        for number in {*range(4)} - {killed}:
            said = hosts.said(number)
            assert "lost the others" in said or "another task died" in said
    with hosts_of(config, 2, tmp_path / "two") as hosts:
        assert hosts.statuses(240) == [0, 0], hosts.said()
        first = ids(hosts.folder / "0.ids")
        assert [b[:4] for b in batches[-len(first) :]] == first and len(first) < 20
    np.testing.assert_allclose(losses(config), expected, rtol=SAME)


@pytest.mark.slow
def test_a_process_that_is_stuck_ends_the_run(several, tmp_path):
    config, _, _ = several
    with hosts_of(config, 2, tmp_path / "two", stuck=(1, 6), stall_s=90.0) as hosts:
        wait_for_step(hosts, config, 5)
        assert 0 not in hosts.statuses(300)
        assert "lost the others (no step was finished in 90 s after step" in hosts.said()


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(several, tmp_path):
    """Each with one sentence, and without waiting for the other."""
    config, _, batches = several
    (source,) = config.data.sources
    shutil.copytree(source.images, tmp_path / "images")
    (tmp_path / "images" / f"{batches[4][7]}.png").unlink()
    sources = (dataclasses.replace(source, images=str(tmp_path / "images")),)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    with hosts_of(config, 2, tmp_path / "two") as hosts:
        assert hosts.statuses(120) == [1, 1], hosts.said()
        assert re.search(r"^1.err: error: process 1 of 2: .*png does not exist", hosts.said(1))
        assert re.search(r"^0.err: error: process 0 of 2 lost the others \(.*\); look at", hosts.said(0))


@pytest.mark.slow
@pytest.mark.parametrize("missing", [0, 1])
def test_processes_that_do_not_meet_say_so(config, tmp_path, missing):
    with hosts_of(config, 2, tmp_path / "two", join_s=4) as hosts:
        hosts.processes[missing].kill()
        assert hosts.statuses(60)[1 - missing] == 1
        sentence = r".*error: the processes of this run did not meet at localhost:\d+ within 4 s; .*\n"
        assert re.fullmatch(sentence, hosts.said(1 - missing))


@pytest.mark.slow
def test_devices_that_share_rows_read_the_same_ones(several, tmp_path):
    config, expected, batches = several
    config = dataclasses.replace(config, mesh=MeshConfig(1, 1, 2))
    with hosts_of(config, 2, tmp_path / "two", devices=1) as hosts:
        assert hosts.statuses(240) == [0, 0], hosts.said()
        assert ids(hosts.folder / "0.ids") == ids(hosts.folder / "1.ids") == batches
    np.testing.assert_allclose(losses(config), expected, rtol=SAME)
