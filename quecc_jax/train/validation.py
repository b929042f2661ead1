"""The loss on rows that training never reads, every so many steps."""

import math

import numpy as np

from quecc_jax.config import RunConfig
from quecc_jax.data.iterator import DataIterator
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.train.state import TrainState
from quecc_jax.train.step import Trainer


class Validation:
    """Takes the loss on all of a run's held-out rows, each once, in batches of the training step's shapes. A context.

    What it says depends on the state alone, so that a run that goes on says what it would have said.

    Args:
      config: the run; with `train.eval_every` 0 nothing is read, and no step is due.
      trainer: of it.
      rows: of every batch that this process reads; None reads all.
      fingerprint: as for `make_iterator`.

    Raises:
      UserError: as `make_iterator`.
    """

    def __init__(self, config: RunConfig, trainer: Trainer, rows: np.ndarray | None, fingerprint: str | None):
        self._every, self._last, self._trainer = config.train.eval_every, config.train.steps, trainer
        self._batches: DataIterator | None = None
        if self._every:
            data, train = config.data, config.train
            self._batches = make_iterator(
                data,
                config.model,
                train.batch_size,
                train.seed,
                rows=rows,
                fingerprint=fingerprint,
                held_out=True,
            )
            self._begin = self._batches.get_state()

    def due(self, step: int) -> bool:
        """Whether the loss is taken behind a step: every so often, and behind the last."""
        return self._every > 0 and (step % self._every == 0 or step == self._last)

    def __call__(self, state: TrainState) -> float:
        """The mean cross-entropy over the labelled tokens of all held-out rows, in nats; NaN if none has a label.

        Raises:
          UserError: a row cannot be read, and may not be left out.
        """
        assert self._batches is not None
        self._batches.set_state(self._begin)
        total, labels = 0.0, 0.0
        for batch in self._batches:
            loss, count = self._trainer.evaluate(state, self._trainer.put(batch))
            # Fetched at once, so that no more batches than one wait on the device.
            total, labels = total + float(loss), labels + float(count)
        return total / labels if labels else math.nan

    def __enter__(self) -> "Validation":
        return self

    def __exit__(self, *_: object) -> None:
        if self._batches is not None:
            self._batches.close()
