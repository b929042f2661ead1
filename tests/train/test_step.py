"""The step: sharding, accumulation, remat and dtype change nothing they should not.

Compiling is what takes time here, so every run is made once for all tests that look at it, and
starts from random arrays instead of a compiled initialiser, which has a test of its own.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.models.vlm import VLM
from quecc_jax.train.step import accumulated_gradients
from tests import tiny
from tests.train.runs import MOVING
from tests.train.stepping import ONE, assert_same, start, trainer_on, two_steps

SHAPES = [MeshConfig(2, 2, 2), MeshConfig(1, 4, 2, sequence_parallel=True), MeshConfig(8, 1, 1)]
TEXT = {"images_per_row": 0}


def run(**changes) -> RunConfig:
    return tiny.run(**{"optimizer": MOVING, **changes})


train = functools.cache(two_steps)


@pytest.mark.parametrize(
    "shape, stage",
    [
        (SHAPES[0], 2),
        (SHAPES[1], 2),
        (SHAPES[2], 1),
        pytest.param(SHAPES[0], 1, marks=pytest.mark.slow),
        pytest.param(SHAPES[1], 1, marks=pytest.mark.slow),
        pytest.param(SHAPES[2], 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_meshes_agree_with_one_device(shape, stage):
    losses, _, state = train(run(stage=stage))
    sharded_losses, _, sharded = train(run(stage=stage), shape)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    assert_same(sharded.trainable, state.trainable, 1e-4)
    assert_same(sharded.frozen, state.frozen, 0.0)


def test_initial_states_are_the_same_on_a_mesh_with_slots_and_counters_at_zero():
    trainers = (trainer_on(run(), shape) for shape in (ONE, SHAPES[0]))
    one, many = (jax.device_get(trainer.init(jax.random.key(0))) for trainer in trainers)
    assert not any(np.any(x) for x in jax.tree.leaves(one._replace(trainable={}, frozen={})))
    for path, x in jax.tree_util.tree_leaves_with_path(one.trainable):
        assert path[-1].key != "kernel" or np.ptp(x) > 0
    assert_same(many, one, 1e-6)


def test_accumulation_is_the_mean_over_all_label_tokens():
    whole, _, state = train(run())
    sliced, _, accumulated = train(run(grad_accum_steps=4))
    np.testing.assert_allclose(sliced, whole, rtol=1e-5)
    assert_same(accumulated.trainable, state.trainable, 1e-4)


def test_slices_and_devices_of_few_labels_count_for_few():
    """Row r, of slice r % 4, keeps 0 to 4 of its labels, so that the slices' own means are of 1, 3, 5 and 7 labels."""
    results = []
    for config, shape in ((run(), ONE), (run(grad_accum_steps=4), ONE), (run(), SHAPES[0])):
        batch = tiny.random_batch(config, 5)
        labels = batch.labels.copy()
        for row, kept in enumerate((0, 1, 2, 3, 1, 2, 3, 4)):
            labels[row, np.flatnonzero(labels[row] != IGNORE)[kept:]] = IGNORE
        trainer = trainer_on(config, shape)
        state, metrics = trainer.step(start(trainer, config), trainer.put(batch._replace(labels=labels)))
        results.append((jax.device_get(metrics), jax.device_get(state.trainable)))
    (whole, params), *others = results
    assert whole["label_tokens"] == 16
    for metrics, trainable in others:
        for name in ("loss", "grad_norm", "label_tokens"):
            np.testing.assert_allclose(metrics[name], whole[name], rtol=1e-5)
        assert_same(trainable, params, 1e-4)


def test_accumulation_holds_no_second_set_of_gradients():
    """The microbatches are as large as the batch without accumulation, the layers larger than their activations."""
    decoder = dataclasses.replace(tiny.RUN.model.decoder, width=128, depth=16, mlp_width=512)
    temporaries = {}
    for microbatches in (1, 4):
        config = run(
            model={"decoder": decoder, "remat": "full"},
            data=TEXT,
            stage=0,
            batch_size=microbatches,
            grad_accum_steps=microbatches,
        )
        trainer, model, chunk = trainer_on(config), VLM(config.model), config.train.loss_chunk
        gradients = jax.jit(
            lambda p, b, m=model, n=microbatches, c=chunk: accumulated_gradients(m, p, {}, b, n, c)
        )
        compiled = gradients.lower(trainer.abstract_state.trainable, trainer.abstract_batch).compile()
        memory: Any = compiled.memory_analysis()
        temporaries[microbatches], result = memory.temp_size_in_bytes, memory.output_size_in_bytes
    assert temporaries[4] < temporaries[1] + 0.2 * result


def test_a_batch_of_text_alone_is_cut_into_microbatches_too():
    """As grouped batching makes them, without a slot for an image; the batch that is whole has empty ones."""
    losses = []
    for config in (run(), run(grad_accum_steps=4)):
        batch = tiny.random_batch(config, images=[0] * 8)
        if config.train.grad_accum_steps > 1:
            batch = batch._replace(
                queries=batch.queries[:, :0],
                query_segments=batch.query_segments[:, :0],
                query_ends=batch.query_ends[:, :0],
                pixels=batch.pixels[:, :0],
            )
        trainer = trainer_on(config)
        losses.append(float(trainer.step(start(trainer, config), trainer.put(batch))[1]["loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"remat": "full"},
        {"remat": "dots"},
        {"remat": "attention", "attention_kernel": "splash", "scan_unroll": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "rest", [{"stage": 0, "data": TEXT}, pytest.param({}, marks=pytest.mark.slow)], ids=str
)
def test_remat_and_unrolling_change_nothing(change, rest):
    """In the decoder, whose layers are what is computed again, and in the whole model."""
    losses, _, state = train(run(**rest))
    other_losses, _, other = train(run(model=change, **rest))
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    assert_same(other.trainable, state.trainable, 1e-4)


def test_bfloat16_compute_keeps_float32_parameters_and_a_close_loss():
    losses, _, _ = train(run())
    rough, _, state = train(run(model={"dtype": "bfloat16"}))
    np.testing.assert_allclose(rough, losses, rtol=0.03)
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {np.dtype("float32")}


def test_loss_is_the_mean_over_the_batchs_labels_from_full_logits():
    config = run()
    losses, before, _ = train(config)
    batch = tiny.random_batch(config, 0)
    model, params = VLM(config.model), {**before.frozen, **before.trainable}
    device_batch = jax.tree.map(jnp.asarray, batch._replace(ids=None))
    hidden = jax.jit(model.apply)({"params": params}, device_batch)
    logits = np.asarray(model.apply({"params": params}, hidden, method=VLM.logits), np.float64)
    expected = []
    for r, t in np.argwhere(batch.labels != IGNORE):
        row = logits[r, t - 1]
        expected.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[batch.labels[r, t]])
    trainer = trainer_on(config)
    _, metrics = trainer.step(start(trainer, config), trainer.put(batch))
    assert metrics["label_tokens"] == len(expected)
    np.testing.assert_allclose(metrics["loss"], np.mean(expected), rtol=1e-5)
    assert losses[0] == metrics["loss"]


@pytest.mark.parametrize(
    "stage,names",
    [(0, {"decoder"}), (1, {"compressor", "projector"}), (2, {"compressor", "projector", "decoder"})],
)
def test_stages_train_what_they_should(stage, names):
    _, before, after = train(run(stage=stage))
    assert set(after.trainable) == names
    assert set(after.frozen) == {"vision", "compressor", "projector", "decoder"} - names
    assert_same(after.frozen, before.frozen, 0.0)
    slots = [x for x in jax.tree.leaves(after.opt_state) if x.ndim]
    assert len(slots) == 2 * len(jax.tree.leaves(after.trainable))
    for name in names:
        leaves = (jax.tree.leaves(state.trainable[name]) for state in (after, before))
        moved = [not np.array_equal(a, b) for a, b in zip(*leaves, strict=True)]
        assert np.mean(moved) > 0.9, name


def test_non_finite_step_is_skipped_and_counted():
    """A weight that is not a number makes any batch's loss one; of an image that holds some, see test_loop."""
    config = run()
    trainer = trainer_on(config)
    state = start(trainer, config)
    before, good = jax.device_get(state), state.frozen
    spoiled = jax.tree.map(lambda x: x * np.nan, good)
    batch = tiny.random_batch(config)
    state, metrics = trainer.step(state._replace(frozen=spoiled), trainer.put(batch))
    after = jax.device_get(state)
    assert metrics["finite"] == 0 and after.skipped == 1 and after.bad_run == 1 and after.step == 1
    assert_same(after.trainable, before.trainable, 0.0)
    assert_same(after.opt_state, before.opt_state, 0.0)
    state = jax.tree.map(lambda array, x: jax.device_put(array, x.sharding), after, trainer.abstract_state)
    frozen = start(trainer, config).frozen
    state, metrics = trainer.step(state._replace(frozen=frozen), trainer.put(batch))
    assert metrics["finite"] == 1 and state.bad_run == 0 and state.skipped == 1


def test_text_only_rows_ignore_images_and_text_only_runs_have_no_tower():
    config = run()
    trainer = trainer_on(config)
    batch = tiny.random_batch(config, images=[0] * 8)
    losses = []
    for scale in (1, 5):
        with_images = batch._replace(pixels=batch.pixels // scale)
        state, metrics = trainer.step(start(trainer, config), trainer.put(with_images))
        losses.append(float(metrics["loss"]))
    assert losses[0] == losses[1] and state.step == 1

    text = run(stage=0, data=TEXT)
    small = trainer_on(text)
    assert set(small.abstract_state.trainable) == {"decoder"} and not small.abstract_state.frozen
    bare = Batch(
        **{
            **batch._asdict(),
            "queries": batch.queries[:, :0],
            "query_segments": batch.query_segments[:, :0],
            "query_ends": batch.query_ends[:, :0],
            "pixels": None,
        }
    )
    fresh = start(small, text)
    decoder = start(trainer, config).trainable["decoder"]
    _, metrics = small.step(fresh._replace(trainable={"decoder": decoder}), small.put(bare))
    np.testing.assert_allclose(metrics["loss"], losses[0], rtol=1e-6)
