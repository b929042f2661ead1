"""Positions that are numbers of a checkpoint: they begin as those that are computed, count, and never move."""

import dataclasses

import jax
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, OptimizerConfig
from quecc_jax.models.compressors.llava_mini_config import LlavaMiniConfig
from quecc_jax.models.compressors.mqt_config import MqtConfig
from quecc_jax.models.compressors.positions import sine_cosine
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import make_mesh
from quecc_jax.train.state import TrainState, split_params
from quecc_jax.train.step import build_trainer
from tests.tiny import random_batch, random_params, run

STORED = [
    MqtConfig(heads=2, queries=4, tokens=3, stored_positions=True),
    LlavaMiniConfig(tokens=4, heads=2, fusion_layers=1, published=True),
]


@pytest.mark.parametrize("compressor", STORED, ids=lambda one: one.name)
def test_a_step_with_weight_decay_moves_all_but_them(compressor):
    config = run(model={"compressor": compressor}, batch_size=4)
    config = dataclasses.replace(config, optimizer=OptimizerConfig(warmup_ratio=0.0, weight_decay=0.1))
    trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
    trainable, frozen = split_params(random_params(config), config.train)
    like = trainer.abstract_state
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    host: TrainState = zeros._replace(trainable=trainable, frozen=frozen)
    state = jax.tree.map(lambda array, x: jax.device_put(array, x.sharding), host, like)
    state, _ = trainer.step(state, trainer.put(random_batch(config)))
    after = jax.device_get(state.trainable["compressor"])
    before = trainable["compressor"]
    np.testing.assert_array_equal(after.pop("positions"), before["positions"])
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max() > 0, after, {k: v for k, v in before.items() if k != "positions"}
    )
    # The key bias adds the same number to every logit of a query.
    moved["attention"].pop("k_bias")
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("compressor", STORED, ids=lambda one: one.name)
def test_new_ones_are_those_that_are_computed_and_others_change_the_tokens(compressor):
    config = run(model={"compressor": compressor}, batch_size=1)
    batch, vlm = random_batch(config), VLM(config.model)
    made = jax.eval_shape(lambda: vlm.init(jax.random.key(0), batch))["params"]["compressor"]["positions"]
    assert made.value.shape == (4, 16)
    params = random_params(config)

    def tokens(positions: np.ndarray) -> np.ndarray:
        given = {**params, "compressor": {**params["compressor"], "positions": positions}}
        return np.asarray(vlm.apply({"params": given}, batch, method=VLM.visual_tokens))

    table = sine_cosine(2, 16)
    if compressor.name == "mqt":
        plain = {k: v for k, v in params["compressor"].items() if k != "positions"}
        plainly = dataclasses.replace(compressor, stored_positions=False)
        computed = dataclasses.replace(config.model, compressor=plainly)
        parts = {"params": {**params, "compressor": plain}}
        wanted = np.asarray(VLM(computed).apply(parts, batch, method=VLM.visual_tokens))
        np.testing.assert_allclose(tokens(table), wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(tokens(table) - tokens(table[::-1])).max() > 1e-3
