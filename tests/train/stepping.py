"""Steps of a run on random arrays, on any mesh, and a run that breaks off and goes on: what tests of training share."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.models.teacher import with_teacher
from quecc_jax.sharding import make_mesh
from quecc_jax.train.loop import train
from quecc_jax.train.resume import Checkpoints
from quecc_jax.train.state import TrainState, split_params, stored_frozen
from quecc_jax.train.step import Trainer, build_trainer
from tests import tiny
from tests.train.runs import Batches

ONE = MeshConfig(1, 1, 1)
on_meshes = pytest.mark.parametrize(
    "shape",
    [
        MeshConfig(2, 2, 2),
        pytest.param(MeshConfig(1, 4, 2, sequence_parallel=True), marks=pytest.mark.slow),
        pytest.param(MeshConfig(8, 1, 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
"""For a test of `shape`."""


def trainer_on(config: RunConfig, shape: MeshConfig = ONE) -> Trainer:
    return cached_trainer(config, shape)


@functools.cache
def cached_trainer(config: RunConfig, shape: MeshConfig) -> Trainer:
    """Without a default, which would make two entries, and two compiled steps, of one trainer."""
    count = shape.data * shape.fsdp * shape.tensor
    return build_trainer(config, make_mesh(shape, jax.devices()[:count]))


def start(trainer: Trainer, config: RunConfig) -> TrainState:
    """A state before the first step, with random parameters, of adapters too; equal for equal model sizes."""
    trainable, frozen = split_params(with_teacher(tiny.random_params(config), config), config.train)
    like = trainer.abstract_state
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    kept = stored_frozen({name: frozen[name] for name in like.frozen}, config)
    host = zeros._replace(trainable=trainable, frozen=kept)
    return jax.tree.map(lambda array, x: jax.device_put(array, x.sharding), host, like)


def two_steps(config: RunConfig, shape: MeshConfig = ONE) -> tuple[list[float], TrainState, TrainState]:
    """Losses, first and last state of two steps on random batches."""
    trainer = trainer_on(config, shape)
    state = start(trainer, config)
    before, losses = jax.device_get(state), []
    for seed in range(2):
        state, metrics = trainer.step(state, trainer.put(tiny.random_batch(config, seed)))
        losses.append(float(metrics["loss"]))
    return losses, before, jax.device_get(state)


def assert_same(a: Any, b: Any, tolerance: float = 1e-4) -> None:
    """Every leaf agrees to `tolerance` times the leaf's largest value."""
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        scale = max(np.abs(y).max(), 1e-3)
        difference = np.abs(x - y).max()
        assert difference <= tolerance * scale, (jax.tree_util.keystr(path), difference, scale)


def equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def last_state(config: RunConfig) -> TrainState:
    with Checkpoints(config) as checkpoints:
        return jax.device_get(checkpoints.restore(trainer_on(config).abstract_state, Batches(config)))


class Broken(Exception):
    pass


class Ends(Batches):
    """Batches that break off behind the second."""

    def __next__(self):
        if self.taken == 2:
            raise Broken
        return super().__next__()


def state_after_an_interruption(config: RunConfig, out: Path) -> TrainState:
    """The last state of the same run in another directory, broken off behind its second step and started again."""
    config = dataclasses.replace(config, out=str(out))
    with pytest.raises(Broken):
        train(config, trainer=trainer_on(config), iterator=Ends(config), progress=lambda _: None)
    train(config, trainer=trainer_on(config), iterator=Batches(config), progress=lambda _: None)
    return last_state(config)
