"""The loss on held-out rows: of which rows, of what state, how often, and what is kept by it."""

import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event

from quecc_jax.commands.cli import execute
from quecc_jax.config import CheckpointConfig, MeshConfig
from quecc_jax.config.io import save_config
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.sampler import Sampler, spread
from quecc_jax.errors import UserError
from quecc_jax.models.vlm import VLM
from quecc_jax.train.checkpoint import load_params
from quecc_jax.train.logs.records import HELD_OUT_LOSS, read_records
from quecc_jax.train.loop import train
from quecc_jax.train.preemption import Preempted
from quecc_jax.train.step import loss_sum
from tests.train.runs import trainer_on
from tests.train.test_batchings import batched
from tests.train.test_interruptions import interrupted_at

HELD = 11


def measured(config, eval_every=5, **checkpoint):
    """Of the 50 rows HELD are left out of training."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, held_out=HELD),
        train=dataclasses.replace(config.train, eval_every=eval_every),
        checkpoint=CheckpointConfig(**{"every": 4, "keep": 2} | checkpoint),
    )


def ids_of(config, batches, count=None, **more):
    data, train_ = config.data, config.train
    with make_iterator(data, config.model, train_.batch_size, train_.seed, **more) as iterator:
        found = [
            batch.ids for batch in (iterator if count is None else (next(iterator) for _ in range(count)))
        ]
    return np.concatenate([np.asarray(ids).reshape(-1) for ids in found])


@pytest.mark.parametrize("batching, pooled", [("pad", 1), ("grouped", 1), ("packed", 1), ("packed", 2)])
def test_held_out_rows_are_measured_once_and_never_trained_on(config, tmp_path, batching, pooled):
    config = measured(batched(config, batching, tmp_path, pooled_rows=pooled))
    held = ids_of(config, None, held_out=True)
    held = held[held >= 0]
    assert sorted(held) == np.flatnonzero(spread(50, HELD)).tolist()
    trained = ids_of(config, None, count=20)
    trained = trained[trained >= 0]
    assert set(trained.tolist()) == set(range(50)) - set(held.tolist())
    # Each process reads its own rows of the same batches.
    parts = [ids_of(config, None, held_out=True, rows=np.arange(k, k + 4)) for k in (0, 4)]
    assert sorted(i for part in parts for i in part.tolist() if i >= 0) == sorted(held)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.data())
def test_an_order_of_some_rows_has_these_alone(sizes, seed, data):
    count = data.draw(st.integers(1, max(1, sum(sizes) - 1)))
    chosen = spread(sum(sizes), count)
    assert chosen.sum() == count
    both = [Sampler(sizes, None, seed, part) for part in (chosen, ~chosen)]
    for order, part in zip(both, (chosen, ~chosen), strict=True):
        for epoch in (0, 1):
            rows = order(epoch * order.rows, (epoch + 1) * order.rows)
            assert sorted(rows) == np.flatnonzero(part).tolist()
            ids = order.ids(rows)
            starts = np.concatenate([[0], np.cumsum(sizes)])
            assert (starts[ids >> 32] + (ids & 0xFFFFFFFF)).tolist() == rows.tolist()


def test_weights_hold_among_the_rows_that_are_left():
    taken = ~spread(300, 100)
    order = Sampler([100, 200], [3.0, 1.0], 7, taken)
    rows = order(0, 400)
    assert taken[rows].all() and abs((rows < 100).sum() - 300) <= 1


def by_hand(config, run):
    """The loss on the held-out rows, one row at a time, by the model alone."""
    _, params = load_params(run)
    sums = []
    data, loss = config.data, jax.jit(loss_sum, static_argnums=(0, 3))
    with make_iterator(data, config.model, 1, config.train.seed, held_out=True) as rows:
        for row in rows:
            sums.append(jax.device_get(loss(VLM(config.model), params, row._replace(ids=None), 512)))
    assert len(sums) == HELD
    total, labels = np.array(sums, np.float64).sum(axis=0).tolist()
    return total / labels


@pytest.mark.parametrize(
    "shape, parts", [((1, 1, 1), 1), pytest.param(MeshConfig(2, 2, 2), 2, marks=pytest.mark.slow)]
)
def test_the_loss_is_the_mean_over_the_labels_of_all_held_out_rows(config, shape, parts):
    config = measured(config, 5, every=5, keep=9)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, grad_accum_steps=parts))
    if isinstance(shape, MeshConfig):
        shape = (shape.data, shape.fsdp, shape.tensor)
    train(config, trainer=trainer_on(config, shape), progress=lambda _: None)
    found = {r["step"]: r[HELD_OUT_LOSS] for r in read_records(config.out) if HELD_OUT_LOSS in r}
    assert list(found) == [5, 10, 15, 20] and found[20] < found[5]
    for step in (5, 20):
        assert found[step] == pytest.approx(by_hand(config, f"{config.out}/checkpoints/{step}"), rel=1e-5)


def test_a_run_that_goes_on_says_what_it_would_have_said(config, trainer, tmp_path):
    config = measured(config)
    straight = dataclasses.replace(config, out=str(tmp_path / "straight"))
    summary = train(straight, trainer=trainer, progress=lambda _: None)
    assert summary["lost_seconds"]["validation"] > 0
    with pytest.raises(Preempted):
        train(config, trainer=trainer, progress=interrupted_at(6))
    train(config, trainer=trainer, progress=lambda _: None)
    one, other = (
        [(r["step"], r["loss"], r.get(HELD_OUT_LOSS)) for r in read_records(run.out)]
        for run in (straight, config)
    )
    assert one == other and sum(loss is not None for *_, loss in one) == 4
    # Nor does looking change what is learned.
    blind = dataclasses.replace(
        straight, out=str(tmp_path / "blind"), train=dataclasses.replace(config.train, eval_every=0)
    )
    train(blind, trainer=trainer, progress=lambda _: None)
    assert [r["loss"] for r in read_records(blind.out)] == [loss for _, loss, _ in one]


def test_tensorboard_has_it_too(config, trainer):
    config = measured(config, 10)
    train(config, trainer=trainer, progress=lambda _: None)
    (file,) = (Path(config.out) / "tensorboard").iterdir()
    data, found = file.read_bytes(), dict[int, float]()
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= dict(
            (event.step, v.simple_value) for v in event.summary.value if v.tag.startswith("validation/")
        )
        data = data[16 + size :]
    expected = {r["step"]: r[HELD_OUT_LOSS] for r in read_records(config.out) if HELD_OUT_LOSS in r}
    assert found == {step: pytest.approx(loss, rel=1e-6) for step, loss in expected.items()}
    assert list(found) == [10, 20]


def test_the_best_checkpoint_is_kept_and_can_be_named(config, trainer, monkeypatch):
    config = measured(config, 2, every=2, keep=2, keep_best=True)
    losses = iter([3.0, 1.0, math.nan, 2.0, 1.5, 1.25, 4.0, 4.0, 4.0, 4.0])
    monkeypatch.setattr("quecc_jax.train.validation.Validation.__call__", lambda *_: next(losses))
    with pytest.raises(Preempted):
        train(config, trainer=trainer, progress=interrupted_at(13))
    # The best one's loss is known again after a restart.
    train(config, trainer=trainer, progress=lambda _: None)
    folder = Path(config.out) / "checkpoints"
    assert sorted(int(path.name) for path in folder.iterdir()) == [4, 18, 20]
    (_, best), (_, last), (_, newest) = (
        load_params(path) for path in (folder / "4", folder / "20", config.out)
    )
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (last, newest)), strict=True)]
    differ = [not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (best, newest)), strict=True)]
    assert all(same) and any(differ)
    with pytest.raises(UserError, match="has no checkpoint 7; it has 20, 18, 4"):
        load_params(folder / "7")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--train.eval-every", "5"), "data.held_out is 0"),
        (("--checkpoint.keep-best",), "train.eval_every 0 does not divide checkpoint.every"),
        (
            (
                "--checkpoint.keep-best",
                "--train.eval-every",
                "3",
                "--data.held-out",
                "9",
                "--checkpoint.every",
                "4",
            ),
            "train.eval_every 3 does not divide checkpoint.every 4",
        ),
        (("--train.eval-every", "5", "--data.held-out", "50"), "data.held_out is 50 of 50 rows"),
        (("--train.eval-every", "5", "--data.held-out", "-1"), "data.held_out is -1"),
    ],
)
def test_mistakes_are_one_sentence(config, tmp_path, options, message):
    config = dataclasses.replace(config, mesh=MeshConfig(8, 1, 1))
    save_config(config, tmp_path / "tiny.json")
    (tmp_path / "tiny.py").write_text(
        "from quecc_jax.config.io import load_config\n"
        f"def config():\n    return load_config({str(tmp_path / 'tiny.json')!r})\n"
    )
    with pytest.raises(UserError, match=message):
        execute("train", [str(tmp_path / "tiny.py"), *options])


def test_a_run_whose_held_out_rows_change_is_refused(config, trainer):
    config = measured(config, 10)
    with pytest.raises(Preempted):
        train(config, trainer=trainer, progress=interrupted_at(6))
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=12))
    with pytest.raises(UserError, match=r"another stream.*held-out rows"):
        train(other, trainer=trainer, progress=lambda _: None)
    assert json.loads((Path(config.out) / "config.json").read_text())["data"]["held_out"] == HELD
