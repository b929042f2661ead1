"""One process of several: `python -m tests.train.host SETTINGS.json`, placed by the JAX_ variables.

Settings: config (path of a run's config.json), ids (a folder for the ids of the batches that each
process reads), pause (seconds before each batch), stuck (process and the number of batches after which
it takes no more, or null), join_s, heartbeat_s, stall_s.
"""

import json
import sys
import time
from pathlib import Path

import jax

from quecc_jax.config.io import load_config
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.distributed import joined, local_rows
from quecc_jax.errors import run_cli
from quecc_jax.sharding import make_mesh
from quecc_jax.train.loop import train
from quecc_jax.train.preemption import Preempted
from quecc_jax.train.step import build_trainer
from tests.train.runs import Logged


class Slow(Logged):
    """Takes its time over each batch."""

    pause = 0.0

    def __next__(self):
        time.sleep(self.pause)
        return super().__next__()


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text())
    config = load_config(given["config"])
    with joined(given["join_s"], given["heartbeat_s"]):
        me = jax.process_index()
        trainer = build_trainer(config, make_mesh(config.mesh))
        rows = local_rows(trainer.mesh, config.train.batch_size)
        batches = make_iterator(config.data, config.model, config.train.batch_size, 0, rows=rows)
        limit = given["stuck"][1] if given["stuck"] and given["stuck"][0] == me else -1
        slow = Slow(batches, Path(given["ids"], f"{me}.ids"), limit)
        slow.pause = given["pause"]
        try:
            train(config, trainer=trainer, iterator=slow, progress=lambda _: None, stall_s=given["stall_s"])
        except Preempted as preempted:
            print(preempted)


if __name__ == "__main__":
    run_cli(main)
