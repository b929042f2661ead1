"""Streams a run's batches, made ahead by grain's threads or processes, from an exact position."""

from collections.abc import Mapping

import grain
import jax
import numpy as np
from absl import flags

from quecc_jax.config import DataConfig
from quecc_jax.data.bad_rows import Tally
from quecc_jax.data.batch import Batch
from quecc_jax.data.grain_shim import close
from quecc_jax.errors import UserError
from quecc_jax.records import Count, of_form
from quecc_jax.worker_process import follow_parent

PREFETCH = 2
"""Batches made ahead, per worker."""


class DataIterator:
    """Endless batches with an exact position.

    Owns grain's threads or worker processes: call `close` when done, or use it as a context.
    `get_state` is a JSON value that depends on nothing but the stream and the number of batches
    taken from it; it may be restored under another number of processes or workers.
    """

    def __init__(self, batches: grain.MapDataset, stream: Mapping[str, object], rows: int, data: DataConfig):
        """
        Args:
          batches: gives (Batch, Read) by number.
          stream: identifies the stream, as JSON values.
          rows: of all sources together.
          data: policies for bad rows, and the number of worker processes.
        """
        self.rows = rows
        """Rows of all sources together."""
        self.tally = Tally(data, rows)
        """What came of the rows of the batches that this object has delivered."""
        self._batches, self._stream, self._workers = batches, stream, data.workers
        self._taken = 0
        self._inner: grain.DatasetIterator | None = None

    def __iter__(self) -> "DataIterator":
        return self

    def __next__(self) -> Batch:
        if self._inner is None:
            self._inner = self._start()
        batch, read = next(self._inner)
        self.tally.add(read)
        if self._workers:
            # Workers deliver views of shared memory, which would live as long as the batch is kept.
            batch = jax.tree.map(np.array, batch)
        self._taken += 1
        return batch

    def _start(self) -> grain.DatasetIterator:
        rest = self._batches[self._taken :]
        dataset = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH))
        if self._workers:
            # Grain's worker processes read absl flags, which only absl's own main function parses.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=PREFETCH)
            dataset = dataset.mp_prefetch(options, _begin_worker)
        return iter(dataset)

    def get_state(self) -> dict[str, object]:
        """Position and identity of the stream."""
        return {"taken": self._taken, **self._stream}

    def set_state(self, state: Mapping[str, object]) -> None:
        """Continues where `get_state` was called.

        Raises:
          UserError: the state belongs to another stream (other sources, weights, seed or batch size), or is none.
        """
        stream = {key: value for key, value in state.items() if key != "taken"}
        if stream != self._stream:
            raise UserError(
                f"the saved data position is of another stream ({stream}, now {self._stream}); "
                "continue with the same sources, weights, seed, batch size and held-out rows"
            )
        self.close()
        self._taken = of_form(
            state.get("taken"), Count, "the saved data position", "go back to an older checkpoint"
        )

    def close(self) -> None:
        """Stops prefetching; the next batch would start it again."""
        if self._inner is not None:
            close(self._inner, self._workers)
            self._inner = None

    def __enter__(self) -> "DataIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _begin_worker(number: int, count: int) -> None:
    """What grain calls in each worker first."""
    follow_parent()
