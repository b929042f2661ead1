"""The step: sharding, accumulation, remat and dtype change nothing they should not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import make_mesh
from quecc_jax.train.step import Trainer, build_trainer
from tests.tiny import random_batch, run

ONE = MeshConfig(1, 1, 1)


def trainer_on(config: RunConfig, shape: MeshConfig) -> Trainer:
    count = shape.data * shape.fsdp * shape.tensor
    return build_trainer(config, make_mesh(shape, jax.devices()[:count]))


def train(config: RunConfig, shape: MeshConfig = ONE, steps: int = 2):
    """Losses and final state after some steps on random batches."""
    trainer = trainer_on(config, shape)
    state = trainer.init(jax.random.key(0))
    losses = []
    for seed in range(steps):
        state, metrics = trainer.step(state, trainer.put(random_batch(config, seed)))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


def assert_same(a, b, tolerance: float) -> None:
    """Every leaf agrees to `tolerance` times the leaf's largest value."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        scale = max(np.abs(y).max(), 1e-3)
        assert np.abs(x - y).max() <= tolerance * scale, (jax.tree_util.keystr(path), np.abs(x - y).max(), scale)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("shape", [MeshConfig(2, 2, 2), MeshConfig(1, 4, 2), MeshConfig(8, 1, 1)], ids=str)
def test_meshes_agree_with_one_device(stage, shape):
    # Plain SGD-like settings: AdamW divides by the gradient's size, which turns round-off in
    # near-zero gradients into full-size updates.
    config = run(stage=stage, optimizer={"eps": 1e-2})
    losses, state = train(config)
    sharded_losses, sharded = train(config, shape)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-5)
    assert_same(sharded.trainable, state.trainable, 1e-4)
    assert_same(sharded.frozen, state.frozen, 0.0)


def test_accumulation_is_the_mean_over_all_label_tokens():
    whole, state = train(run(optimizer={"eps": 1e-2}))
    sliced, accumulated = train(run(optimizer={"eps": 1e-2}, accumulation=4))
    np.testing.assert_allclose(sliced, whole, rtol=1e-5)
    assert_same(accumulated.trainable, state.trainable, 1e-4)


@pytest.mark.parametrize("change", [{"remat": "full"}, {"remat": "dots"}], ids=str)
def test_remat_changes_nothing(change):
    losses, state = train(run(optimizer={"eps": 1e-2}))
    other_losses, other = train(run(model=change, optimizer={"eps": 1e-2}))
    np.testing.assert_allclose(other_losses, losses, rtol=1e-6)
    assert_same(other.trainable, state.trainable, 1e-4)


def test_bfloat16_compute_keeps_float32_parameters_and_a_close_loss():
    losses, _ = train(run())
    rough, state = train(run(model={"dtype": "bfloat16"}))
    np.testing.assert_allclose(rough, losses, rtol=0.03)
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {np.dtype("float32")}


def test_loss_is_the_mean_over_the_batchs_labels_from_full_logits():
    config = run()
    trainer = trainer_on(config, ONE)
    state = trainer.init(jax.random.key(0))
    batch = random_batch(config)
    model, params = VLM(config.model), {**state.frozen, **state.trainable}
    device_batch = jax.tree.map(jnp.asarray, batch._replace(ids=None))
    hidden = model.apply({"params": params}, device_batch)
    logits = np.asarray(model.apply({"params": params}, hidden, method=VLM.logits), np.float64)
    losses = []
    for r, t in np.argwhere(batch.labels != IGNORE):
        row = logits[r, t - 1]
        losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[batch.labels[r, t]])
    _, metrics = trainer.step(state, trainer.put(batch))
    assert metrics["label_tokens"] == len(losses)
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize("stage,names", [(0, {"decoder"}), (1, {"compressor", "projector"}),
                                         (2, {"compressor", "projector", "decoder"})])  # fmt: skip
def test_stages_train_what_they_should(stage, names):
    config = run(stage=stage)
    before = jax.device_get(trainer_on(config, ONE).init(jax.random.key(0)))
    _, after = train(config)
    assert set(after.trainable) == names
    assert set(after.frozen) == {"vision", "compressor", "projector", "decoder"} - names
    assert_same(after.frozen, before.frozen, 0.0)
    slots = [x for x in jax.tree.leaves(after.opt_state) if x.ndim]
    assert len(slots) == 2 * len(jax.tree.leaves(after.trainable))
    for name in names:
        moved = [not np.array_equal(a, b) for a, b in zip(
            jax.tree.leaves(after.trainable[name]), jax.tree.leaves(before.trainable[name]), strict=True)]  # fmt: skip
        assert np.mean(moved) > 0.9, name


def test_non_finite_batch_is_skipped_and_counted():
    config = run()
    trainer = trainer_on(config, ONE)
    state = trainer.init(jax.random.key(0))
    before = jax.device_get(state)
    bad = random_batch(config)
    bad.pixels[1, 0] = np.nan
    state, metrics = trainer.step(state, trainer.put(bad))
    after = jax.device_get(state)
    assert metrics["finite"] == 0 and after.skipped == 1 and after.bad_run == 1 and after.step == 1
    assert_same(after.trainable, before.trainable, 0.0)
    assert_same(after.opt_state, before.opt_state, 0.0)
    state, metrics = trainer.step(state, trainer.put(random_batch(config)))
    assert metrics["finite"] == 1 and state.bad_run == 0 and state.skipped == 1


def test_projector_learning_rate_is_its_own():
    config = run(stage=2, optimizer={"projector_learning_rate": 0.0})
    before = jax.device_get(trainer_on(config, ONE).init(jax.random.key(0)))
    _, after = train(config)
    assert_same(after.trainable["projector"], before.trainable["projector"], 0.0)
    assert_same(after.trainable["compressor"], before.trainable["compressor"], 0.0)
    assert not np.array_equal(after.trainable["decoder"]["norm"]["scale"], before.trainable["decoder"]["norm"]["scale"])


def test_text_only_rows_ignore_pictures_and_text_only_runs_have_no_tower():
    config = run()
    trainer = trainer_on(config, ONE)
    batch = random_batch(config, pictures=[0] * 8)
    losses = []
    for scale in (0.0, 5.0):
        state = trainer.init(jax.random.key(0))
        _, metrics = trainer.step(state, trainer.put(batch._replace(pixels=batch.pixels * scale)))
        losses.append(float(metrics["loss"]))
    assert losses[0] == losses[1]

    text = run(stage=0, data={"images_per_row": 0})
    assert set(trainer_on(text, ONE).init(jax.random.key(0)).trainable) == {"decoder"}
    pictured = jax.device_get(state)
    bare = Batch(**{**batch._asdict(), "queries": batch.queries[:, :0],
                    "query_lengths": batch.query_lengths[:, :0], "pixels": None})  # fmt: skip
    small = trainer_on(text, ONE)
    fresh = small.init(jax.random.key(0))._replace(trainable={"decoder": trainer.init(jax.random.key(0)).trainable["decoder"]})
    _, metrics = small.step(fresh, small.put(bare))
    np.testing.assert_allclose(metrics["loss"], losses[0], rtol=1e-6)
    assert pictured.step == 1
