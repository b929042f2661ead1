"""Short runs for the tests of the loop and of its checkpoints.

As a program it is the process that a test kills: `python -m tests.train.runs CONFIG.json IDS N`
trains on one device, logs every batch's ids, and takes no batch after the N-th.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.config.io import load_config
from quecc_jax.data.batch import Batch
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.sharding import make_mesh
from quecc_jax.train.loop import BatchIterator, train
from quecc_jax.train.step import Trainer, build_trainer
from tests.tiny import random_batch

MOVING = {"eps": 1e-2}
"""AdamW divides by the gradient's size, which turns round-off in near-zero gradients into full-size
updates; with a large epsilon it is close to plain descent. All runs here have it, so that they share compiled
steps."""


def trainer_on(config: RunConfig, shape: tuple[int, int, int] = (1, 1, 1)) -> Trainer:
    """A trainer on as many of the emulated devices as the mesh needs."""
    data, fsdp, tensor = shape
    devices = jax.devices()[: data * fsdp * tensor]
    return build_trainer(config, make_mesh(MeshConfig(data, fsdp, tensor), devices))


class Batches:
    """Random batches; the n-th depends on n alone, and `change` may spoil it."""

    def __init__(self, config: RunConfig, change: Callable[[int, Batch], Batch] = lambda n, batch: batch):
        self.config, self.change = config, change
        self.taken, self.closed = 0, False

    def __next__(self) -> Batch:
        self.taken += 1
        return self.change(self.taken, random_batch(self.config, self.taken))

    def get_state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def set_state(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]

    def close(self) -> None:
        self.closed = True


class Logged:
    """An iterator that appends each batch's ids to a file and waits forever after `limit` batches."""

    def __init__(self, inner: BatchIterator, path: Path, limit: int):
        self.inner, self.path, self.left = inner, path, limit
        self.get_state, self.set_state, self.close = inner.get_state, inner.set_state, inner.close
        self.tally = getattr(inner, "tally", None)

    def __next__(self) -> Batch:
        while not self.left:
            time.sleep(1)
        self.left -= 1
        batch = next(self.inner)
        assert batch.ids is not None
        with self.path.open("a") as file:
            file.write(json.dumps(batch.ids.tolist()) + "\n")
        return batch


def train_logged(config: RunConfig, trainer: Trainer, ids: Path, limit: int) -> dict[str, Any]:
    """Trains on the run's real data pipeline, logging batch ids."""
    batches = make_iterator(config.data, config.model, config.train.batch_size, config.train.seed)
    return train(config, trainer=trainer, iterator=Logged(batches, ids, limit), progress=lambda _: None)


if __name__ == "__main__":
    settings = load_config(sys.argv[1])
    train_logged(settings, trainer_on(settings), Path(sys.argv[2]), int(sys.argv[3]))
