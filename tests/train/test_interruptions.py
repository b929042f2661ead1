"""A run that is preempted, met by another, traced, or slowed down."""

import dataclasses
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax import distributed
from quecc_jax import run_lock as lock
from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.run_lock import run_lock
from quecc_jax.train import loop
from quecc_jax.train.logs.meter import Meter
from quecc_jax.train.logs.records import read_records
from quecc_jax.train.logs.terminal import describe_goodput
from quecc_jax.train.loop import train
from quecc_jax.train.preemption import Preempted
from quecc_jax.train.profile import parse_window
from quecc_jax.train.resume import Checkpoints
from tests.train.runs import Batches


def quiet(config, trainer, progress=lambda _: None):
    return train(config, trainer=trainer, iterator=Batches(config), progress=progress)


def interrupted_at(step, number=signal.SIGTERM):
    return lambda record: os.kill(os.getpid(), number) if record["step"] == step else None


def states(trainer, *configs):
    for config in configs:
        with Checkpoints(config) as checkpoints:
            yield jax.device_get(checkpoints.restore(trainer.abstract_state, Batches(config)))


def test_sigterm_saves_and_the_same_call_continues_bit_by_bit(config, trainer, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    straight = dataclasses.replace(config, out=str(tmp_path / "straight"))
    quiet(straight, trainer)
    with pytest.raises(Preempted, match="saved after step 7 of 20 and stopped on SIGTERM") as stopped:
        quiet(config, trainer, interrupted_at(6))
    # Where nothing catches it, a shell sees a program that SIGTERM ended.
    assert isinstance(stopped.value, SystemExit) and stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert (Path(config.out) / "checkpoints" / "7").is_dir()
    assert quiet(config, trainer)["step"] == 20
    one, two = states(trainer, straight, config)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)
    losses = [[r["loss"] for r in read_records(run.out)] for run in (straight, config)]
    assert losses[0] == losses[1]


def test_sigterm_at_the_last_step_is_no_interruption(config, trainer):
    assert quiet(config, trainer, interrupted_at(20))["step"] == 20


def test_a_run_that_goes_on_says_from_where(config, trainer, capsys):
    with pytest.raises(Preempted):
        quiet(config, trainer, interrupted_at(6))
    assert "continues" not in capsys.readouterr().err
    train(config, trainer=trainer, iterator=Batches(config))
    assert f"{config.out}: continues behind step 7 of 20\n" in capsys.readouterr().err


def test_the_command_says_what_to_do_after_ctrl_c(monkeypatch, capsys, tmp_path):
    def interrupted(config):
        raise KeyboardInterrupt

    (tmp_path / "tiny.py").write_text("from tests.tiny import RUN\ndef config():\n    return RUN\n")
    monkeypatch.setattr(distributed, "join", lambda *_: None)
    monkeypatch.setattr(loop, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute("train", [str(tmp_path / "tiny.py")])
    assert "the same command continues from what was saved" in capsys.readouterr().err


def test_the_command_ends_well_when_preempted(monkeypatch, capsys, tmp_path):
    def preempted(config):
        raise Preempted("runs/a: saved after step 7 of 20 and stopped on SIGTERM")

    (tmp_path / "tiny.py").write_text("from tests.tiny import RUN\ndef config():\n    return RUN\n")
    monkeypatch.setattr(distributed, "join", lambda *_: None)
    monkeypatch.setattr(loop, "train", preempted)
    execute("train", [str(tmp_path / "tiny.py")])
    said = capsys.readouterr().out
    assert said == "runs/a: saved after step 7 of 20 and stopped on SIGTERM; the same command continues it\n"


def test_training_outside_the_main_thread_leaves_signals_alone(config, trainer):
    before, done = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: done.append(quiet(config, trainer)["step"]))
    thread.start()
    thread.join()
    assert done == [20] and signal.getsignal(signal.SIGTERM) == before


def test_a_second_run_in_the_same_directory_is_refused(config, trainer):
    refused = []

    def another(record):
        if record["step"] == 3:
            with pytest.raises(UserError) as error:
                quiet(config, trainer)
            refused.append(str(error.value))

    assert quiet(config, trainer, another)["step"] == 20
    host = os.uname().nodename
    assert refused == [
        f"{config.out} is in use by process {os.getpid()} on {host}; wait for it, stop it, or "
        "give another out directory"
    ]


def test_the_lock_of_a_process_that_is_gone_means_nothing(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "more": "x" * 500}))
    with run_lock(str(tmp_path)):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    with run_lock(str(tmp_path)):
        pass


def test_locks_in_buckets_are_leases(bucket, monkeypatch, capsys):
    monkeypatch.setattr(lock, "LEASE_S", 0.4)
    in_use = pytest.raises(UserError, match=f"gs://bucket/run is in use by process {os.getpid()} on ")
    with run_lock("gs://bucket/run"), in_use, run_lock("gs://bucket/run"):
        pass
    assert "gs://bucket/run was last used by" in capsys.readouterr().err
    assert not (bucket / "run" / "lock").exists()
    (bucket / "run" / "lock").write_text('{"pid": 1, "host": "gone"}')
    with run_lock("gs://bucket/run"):
        assert json.loads((bucket / "run" / "lock").read_text())["pid"] == os.getpid()


def test_a_run_lives_in_a_bucket(config, trainer, bucket, monkeypatch):
    monkeypatch.setattr(lock, "LEASE_S", 0.1)
    straight, config = config, dataclasses.replace(config, out="gs://bucket/run", profile="2:3")
    quiet(straight, trainer)
    with pytest.raises(Preempted, match="saved after step 7"):
        quiet(config, trainer, interrupted_at(6))
    assert quiet(config, trainer)["step"] == 20
    losses = [[r["loss"] for r in read_records(run.out)] for run in (straight, config)]
    assert losses[0] == losses[1] and len(losses[0]) == 20
    here = bucket / "run"
    assert {p.name for p in (here / "checkpoints").iterdir()} == {"16", "20"}
    assert list((here / "tensorboard").glob("events*")) and list((here / "profile").rglob("*.xplane.pb"))
    assert (here / "config.json").exists() and (here / "tokenizer").is_dir()


@pytest.mark.parametrize(
    "window, done, traced",
    [("3:5", 0, [3, 4, 5]), ("19:30", 0, [19, 20]), ("3:9", 7, [8, 9]), ("3:5", 7, [])],
)
def test_the_trace_holds_the_steps_of_its_window(config, trainer, monkeypatch, window, done, traced):
    events: list[Any] = []

    class Trace:
        def __init__(self, folder):
            assert folder == f"{config.out}/profile"

        def __enter__(self):
            events.append("on")

        def __exit__(self, *_):
            events.append("off")

    def step(state, batch):
        events.append(int(state.step) + 1)
        return trainer.step(state, batch)

    monkeypatch.setattr(jax.profiler, "trace", Trace)
    if done:
        with pytest.raises(Preempted):
            quiet(config, trainer, interrupted_at(done - 1))
    quiet(dataclasses.replace(config, profile=window), trainer._replace(step=step))
    inside = events[events.index("on") + 1 : events.index("off")] if "on" in events else []
    assert inside == traced and events.count("on") == events.count("off") == bool(traced)


@pytest.mark.parametrize("text", ["5", "5:", "0:3", "7:5", "a:b", "1:2:3"])
def test_a_window_that_is_none_is_a_sentence(text, config):
    with pytest.raises(UserError, match=f"profile {text} is not a window of steps"):
        train(dataclasses.replace(config, profile=text))
    assert list(parse_window("10:12")) == [10, 11, 12] and not parse_window("")


def test_goodput_counts_what_is_not_training(config, trainer, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("quecc_jax.train.logs.meter.time.perf_counter", lambda: now[0])
    batches = Batches(config)
    state = trainer.init(jax.random.key(0))
    now[0] = 10.0
    meter = Meter(config, state, began=0.0)
    for data, step, saving in ((5.0, 15.0, 0.0), (2.0, 20.0, 3.0), (0.0, 42.0, 3.0)):
        with meter.waiting("data"):
            now[0] += data
        batch = next(batches)
        now[0] += step
        state, metrics = trainer.step(state, trainer.put(batch))
        meter.add(batch, metrics)
        with meter.waiting("saving"):
            now[0] += saving
    summary = meter.summary()
    assert summary["lost_seconds"] == {"start": 10.0, "compile": 20.0, "data": 2.0, "saving": 6.0}
    assert summary["total_seconds"] == 100.0
    assert summary["goodput"] == pytest.approx(0.62)
    lost = "start 10.0 s, compile 20.0 s, data 2.0 s, saving 6.0 s"
    assert describe_goodput(summary) == f"goodput 62.0%: 62.0 s of 100.0 s in steps ({lost})"
