"""Sources to a stream of fixed-shape batches, exactly resumable, with grain.

Only row numbers flow through grain's shuffling, repeating, mixing and slicing; one map turns the
numbers of a batch into the batch. So the order costs microseconds a row, any batch of the stream
can be made without those before it, and the state of the stream is the number of batches taken.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.faults import DROPPED, LeftOut, Read, Tally
from quecc_jax.data.sources import Source, open_sources, read_rows
from quecc_jax.errors import BadRow, UserError
from quecc_jax.geometry import hidden_indices

PREFETCH = 2
"""Batches made ahead, per worker."""


def row_ids(source: int, rows: int) -> np.ndarray:
    """int64 [rows] identities of the samples of the source-th source: source * 2^32 + row."""
    return (np.int64(source) << 32) + np.arange(rows, dtype=np.int64)


class Assemble:
    """Makes the batch of given samples; pickles into grain's worker processes."""

    def __init__(self, sources: Sequence[Source], data: DataConfig, model: ModelConfig):
        self.sources, self.data = sources, data
        vision = model.vision
        self.pixels = (vision.image_size, vision.image_size, 3)
        self.features = (vision.patches, len(hidden_indices(vision)), vision.width)

    def __call__(self, ids: np.ndarray) -> tuple[Batch, Read]:
        """The batch of samples `ids` (int64 [B], -1 for an empty row), and what came of its rows.

        A row that is left out leaves its place empty: zeros, as if it had no text and no pictures.
        """
        b, s, i, q = len(ids), self.data.max_length, self.data.images_per_row, self.data.query_length
        codes, loss = np.zeros((b, s), np.int32), np.zeros((b, s), bool)
        lengths = np.zeros((b, 1), np.int32)
        truncated, left_out = list[int](), list[LeftOut]()
        queries, query_lengths = np.zeros((b, i, q), np.int32), np.zeros((b, i), np.int32)
        pixels = features = None
        if i and self.data.cached_features:
            features = np.zeros((b, i, *self.features), np.float16)
        elif i:
            pixels = np.zeros((b, i, *self.pixels), np.uint8)
        for place, identity in enumerate(ids.tolist()):
            if identity < 0:
                continue
            source, row = self.sources[identity >> 32], identity & 0xFFFFFFFF
            seen = features if features is not None else pixels
            try:
                made = source.encoded(row)
                length = len(made.codes)
                if not length:
                    left_out.append(LeftOut(identity, DROPPED, f"{source.where(row)}: longer than "
                                                               f"data.max_length {s}"))
                    continue
                pictures = source.pictures(row)
                if pictures and features is not None:
                    source.write_features(row, features[place])
                elif pictures and pixels is not None:
                    source.write_pixels(row, pixels[place])
            except BadRow as bad:
                left_out.append(LeftOut(identity, bad.fault, str(bad)))
                if seen is not None:
                    seen[place] = 0
                continue
            codes[place, :length], loss[place, :length], lengths[place] = made.codes, made.loss, length
            if made.cut:
                truncated.append(identity)
            queries[place, :pictures, :len(made.query)] = made.query
            query_lengths[place, :pictures] = len(made.query)
        position = np.arange(s, dtype=np.int32)
        real = position < lengths
        return Batch(
            tokens=np.maximum(codes, 0), slots=np.where(codes < 0, -1 - codes, -1),
            labels=np.where(loss, codes, IGNORE), positions=np.where(real, position, 0),
            segments=real.astype(np.int32), queries=queries, query_lengths=query_lengths, pixels=pixels,
            features=features, ids=ids), Read(
                int((ids >= 0).sum()), tuple(truncated), tuple(left_out))


class Take:
    """Picks one process's rows of a batch; pickles into grain's worker processes."""

    def __init__(self, rows: Sequence[int] | np.ndarray):
        self.rows = np.asarray(rows)

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return ids[self.rows]


class DataIterator:
    """Endless batches with an exact position.

    Owns grain's threads or worker processes: call `close` when done, or use it as a context.
    `get_state` is a JSON value that depends on nothing but the stream and the number of batches
    taken from it; it may be restored under another number of processes or workers.
    """

    def __init__(self, batches: grain.MapDataset, stream: dict[str, Any], data: DataConfig):
        self.rows: int = stream["rows"]
        """Rows of all sources together."""
        self.tally = Tally(data, self.rows)
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
        rest = self._batches[self._taken:]
        dataset = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCH))
        if self._workers:
            # Grain's worker processes read absl flags, which only absl's own main function parses.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=PREFETCH)
            dataset = dataset.mp_prefetch(options)
        return iter(dataset)

    def get_state(self) -> dict[str, Any]:
        """Position and identity of the stream."""
        return {"taken": self._taken, **self._stream}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called.

        Raises:
          UserError: the state belongs to another stream (other sources, weights, seed or batch size).
        """
        stream = {key: value for key, value in state.items() if key != "taken"}
        if stream != self._stream:
            raise UserError(f"the saved data position is of another stream ({stream}, now {self._stream}); "
                            "continue with the same sources, weights, seed and batch size")
        self.close()
        self._taken = state["taken"]

    def close(self) -> None:
        """Stops prefetching; the next batch would start it again."""
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def __enter__(self) -> "DataIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_iterator(data: DataConfig, model: ModelConfig, batch_size: int, seed: int, *,
                  rows: Sequence[int] | np.ndarray | None = None,
                  fingerprint: str | None = None) -> DataIterator:
    """An endless, shuffled, mixed stream of training batches.

    Without weights every epoch of the joined sources visits each row once; with weights every source
    is repeated on its own, each of its epochs visiting each of its rows once. Each epoch has its own
    order. Batches run across the ends of epochs.

    Args:
      data: Sources, template, lengths and workers.
      model: Sizes of pictures or features and visual tokens.
      batch_size: Rows of one batch over all processes.
      seed: Of the order.
      rows: Which rows of every batch this process reads, in this order; None reads all of them.
      fingerprint: The tower that cached features must be of; None takes any.

    Returns:
      Yields numpy `Batch`es of these rows, `ids` filled.

    Raises:
      UserError: a source cannot be read, or the settings do not fit together. The iterator raises it
        for bad rows, as `data.bad_rows` and `data.max_bad_share` say.
    """
    sources = open_sources(data, model, fingerprint)
    weights = [config.weight for config in data.sources]
    given = [weight for weight in weights if weight is not None]
    if given and (len(given) < len(weights) or min(given) <= 0):
        raise UserError(f"the weights of data.sources are {weights}; give every source a positive one, or "
                        "none")
    ids = [row_ids(number, len(source)) for number, source in enumerate(sources)]
    if not given:
        ids = [np.concatenate(ids)]
    seeds = np.random.SeedSequence(seed).generate_state(len(ids))
    streams = [grain.MapDataset.source(part).shuffle(seed=int(s)).repeat()
               for part, s in zip(ids, seeds, strict=True)]
    stream = grain.MapDataset.mix(streams, given) if len(streams) > 1 else streams[0]
    batches = stream.batch(batch_size)
    if rows is not None:
        batches = batches.map(Take(rows))
    sizes = [len(source) for source in sources]
    return DataIterator(batches.map(Assemble(sources, data, model)),
                        {"rows": sum(sizes), "sources": sizes, "weights": weights, "seed": seed,
                         "batch_size": batch_size}, data)


def eval_batches(data: DataConfig, model: ModelConfig, batch_size: int, *, prompts: bool = False,
                 fingerprint: str | None = None) -> Iterator[Batch]:
    """Every row once, in order, source by source.

    Args:
      data: Sources, template and lengths; weights and workers play no part.
      model: Sizes of pictures or features and visual tokens.
      batch_size: Rows of a batch.
      prompts: Stop each row where its first answer begins (for generation) instead of laying out
        the whole conversation with its labels.
      fingerprint: The tower that cached features must be of; None takes any.

    Yields:
      numpy `Batch`es of batch_size rows; the last is filled with empty rows of id -1.

    Raises:
      UserError: as `make_iterator`, and for any bad row: what is left out cannot be scored.
    """
    data = dataclasses.replace(data, bad_rows="error")
    sources, tally = open_sources(data, model, fingerprint, prompts), Tally(data, 0)
    assemble = Assemble(sources, data, model)
    ids = np.concatenate([row_ids(number, len(source)) for number, source in enumerate(sources)])
    for start in range(0, len(ids), batch_size):
        chosen = ids[start:start + batch_size]
        fill = np.full(batch_size - len(chosen), -1, np.int64)
        batch, read = assemble(np.concatenate([chosen, fill]))
        tally.add(read)
        yield batch


def rows_by_id(data: DataConfig) -> dict[int, dict[str, Any]]:
    """The LLaVA-format row behind each id of `Batch.ids`: question, answer, kind, picture."""
    found: dict[int, dict[str, Any]] = {}
    for number, config in enumerate(data.sources):
        rows = read_rows(config)
        found.update(zip(row_ids(number, len(rows)).tolist(), rows, strict=True))
    return found
