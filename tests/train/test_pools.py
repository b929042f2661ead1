"""Packed rows that share room for images learn what they learn with room of their own."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.config.validation import validate
from quecc_jax.data.batch import Batch
from quecc_jax.data.collate import Collate
from quecc_jax.data.pipeline import plan_batches
from quecc_jax.data.plans.packing import BatchPlan
from quecc_jax.data.sources.open import open_sources
from quecc_jax.errors import UserError
from quecc_jax.flops import train_flops
from quecc_jax.sharding import make_mesh
from quecc_jax.train.loop import train
from quecc_jax.train.step import build_trainer
from tests.train.stepping import assert_same, start, trainer_on
from tests.train.test_hosts import SAME, hosts_of, losses

ROOM = 7
"""Images of a pool of two rows, or of a row with room of its own."""


@pytest.fixture(scope="module")
def shared(base, tmp_path_factory) -> RunConfig:
    """Conversations with no, one and two images in pools of two rows, in two microbatches of eight."""
    (source,), folder = base.data.sources, tmp_path_factory.mktemp("pools")
    rng, rows = np.random.default_rng(0), list[dict[str, Any]]()
    for number in range(60):
        images = int(rng.choice([0, 1, 1, 2]))
        said = "<image>\n" * images + " ".join(rng.choice(["how", "many", "dots"], int(rng.integers(1, 6))))
        turns = [{"from": "human", "value": said}, {"from": "gpt", "value": "many dots"}]
        row = {"id": number, "conversations": turns}
        if images:
            row["image"] = [f"{k}.png" for k in rng.integers(0, 50, images)]
        rows.append(row)
    (folder / "rows.json").write_text(json.dumps(rows))
    data = dataclasses.replace(
        base.data,
        sources=(dataclasses.replace(source, path=str(folder / "rows.json")),),
        batching="packed",
        max_length=48,
        query_length=8,
        packed_images=ROOM,
        pooled_rows=2,
        lookahead_rows=40,
        cache=str(folder / "cache"),
    )
    steps = dataclasses.replace(base.train, batch_size=16, grad_accum_steps=2, steps=6)
    return dataclasses.replace(base, data=data, train=steps)


def alone(config: RunConfig) -> RunConfig:
    """The same with room of its own for each row."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, pooled_rows=1))


def both(config: RunConfig, number: int) -> tuple[Batch, Batch]:
    """One batch of pools, and the same rows with room of their own."""
    sources = open_sources(config.data, config.model)
    plans, _ = plan_batches(sources, config.data, config.model, config.train.batch_size, 0)
    plan, own = plans[number], alone(config).data
    apart = BatchPlan(plan.ids, plan.length, ROOM)
    return (
        Collate(sources, config.data, config.model)(plan)[0],
        Collate(sources, own, config.model)(apart)[0],
    )


@pytest.mark.parametrize(
    "shape",
    [
        MeshConfig(1, 1, 1),
        MeshConfig(2, 2, 2),
        pytest.param(MeshConfig(1, 4, 2, sequence_parallel=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_losses_and_gradients_are_those_of_rows_with_room_of_their_own(shared, shape):
    own, found = alone(shared), []
    pooled, apart = both(shared, 1)
    assert pooled.pixels.shape[0] * 2 == apart.pixels.shape[0] == 16
    with_images = (pooled.slots >= 0).any(axis=1)
    assert with_images.sum() > 0 and (pooled.segments.max(axis=1) > 1).any()
    # Rows of one pool read images behind those of their neighbours.
    assert (pooled.slots.max(axis=1) > apart.slots.max(axis=1)).sum() > 3
    for config, batch in ((shared, pooled), (own, apart)):
        trainer = trainer_on(config, shape)
        state, metrics = trainer.step(start(trainer, config), trainer.put(batch))
        found.append(jax.device_get((metrics, state.trainable)))
    (metrics, state), (expected, there) = found
    assert metrics["label_tokens"] == expected["label_tokens"] > 50
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-6)
    assert_same(state, there, 1e-5)


def test_text_alone_in_a_pool_needs_no_image(shared):
    pooled, apart = both(shared, 0)
    text = [
        {"slots": np.full_like(b.slots, -1), "query_ends": np.full_like(b.query_ends, -1)}
        for b in (pooled, apart)
    ]
    found = []
    for config, batch, change in ((shared, pooled, text[0]), (alone(shared), apart, text[1])):
        trainer = trainer_on(config, MeshConfig(1, 1, 1))
        state = start(trainer, config)
        _, metrics = trainer.step(state, trainer.put(batch._replace(**change)))
        found.append(float(metrics["loss"]))
    assert found[0] == pytest.approx(found[1], rel=2e-6) and np.isfinite(found[0])


def test_a_run_of_pools_goes_on_where_it_was_stopped(shared, tmp_path):
    saves = dataclasses.replace(shared.checkpoint, every=2)
    config = dataclasses.replace(shared, checkpoint=saves, out=str(tmp_path / "run"))
    trainer = trainer_on(shared, MeshConfig(1, 1, 1))
    whole = train(config, trainer=trainer, progress=lambda _: None)
    expected = losses(config)
    assert len(expected) == 6 and whole["flops_per_s"] == pytest.approx(
        whole["steps_per_s"] * train_flops(config), rel=1e-3
    )
    config = dataclasses.replace(config, out=str(tmp_path / "broken"))
    short = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    train(short, trainer=trainer, progress=lambda _: None)
    train(config, trainer=trainer, progress=lambda _: None)
    assert losses(config) == expected


@pytest.mark.slow
def test_processes_that_share_pools_out_learn_what_one_does(shared, tmp_path):
    alone_here = dataclasses.replace(shared, out=str(tmp_path / "one"))
    train(alone_here, trainer=trainer_on(shared, MeshConfig(1, 1, 1)), progress=lambda _: None)
    several = dataclasses.replace(shared, out=str(tmp_path / "several"), mesh=MeshConfig())
    with hosts_of(several, 2, tmp_path / "two") as hosts:
        assert hosts.statuses(400) == [0, 0], hosts.said()
    np.testing.assert_allclose(losses(several), losses(alone_here), rtol=SAME)


def test_the_work_on_images_is_that_of_the_room_there_is(shared):
    """Half the images, counted by hand from what a place more costs."""
    own = alone(shared)
    row = train_flops(own, images=ROOM, query=8) - train_flops(own, images=0, query=0)
    pool = train_flops(shared, images=ROOM, query=8) - train_flops(shared, images=0, query=0)
    assert pool == pytest.approx(row / 2)


def test_what_cannot_be_pooled_is_said(shared):
    validate(shared)
    mesh = make_mesh(MeshConfig(8, 1, 1))
    with pytest.raises(
        UserError, match=r"8 rows, which do not divide over 8 devices .* pools of data.pooled_rows 2"
    ):
        build_trainer(shared, mesh)
    distil = dataclasses.replace(shared.train.distil, weight=0.5)
    taught = dataclasses.replace(
        shared, init_from="x", train=dataclasses.replace(shared.train, distil=distil)
    )
    with pytest.raises(UserError, match=r"data\.pooled_rows 2 shares out images .* but train\.distil"):
        validate(taught)
    padded = dataclasses.replace(taught, data=dataclasses.replace(taught.data, batching="pad"))
    validate(padded)
