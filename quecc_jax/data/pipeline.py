"""Sources to a stream of fixed-shape batches, exactly resumable, with grain.

Only numbers of rows are shuffled, mixed, grouped and packed; grain then has threads or worker
processes turn the numbers of a batch into the batch. So any batch of the stream can be made without
those before it, and the state of the stream is the number of batches taken.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.config.shapes import query_width, state_shape
from quecc_jax.data.bad_rows import DROPPED, LeftOut, Read, Tally
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.elastic import Elastic, Slots, choices
from quecc_jax.data.lengths import measure
from quecc_jax.data.packing import BatchPlan, Grouped, Packed, Padded, Queries, RowLengths, row_lengths
from quecc_jax.data.sampler import Order
from quecc_jax.data.sources.open import open_sources, read_rows
from quecc_jax.data.sources.source import Encoded, Source
from quecc_jax.data.text.queries import bucket, query_buckets, question_segments
from quecc_jax.data.tiles import arrangement_settings
from quecc_jax.errors import BadRow, UserError

PREFETCH = 2
"""Batches made ahead, per worker."""


def row_ids(source: int, rows: int) -> np.ndarray:
    """int64 [rows] identities of the samples of the source-th source: source * 2^32 + row."""
    return (np.int64(source) << 32) + np.arange(rows, dtype=np.int64)


class Collate:
    """Makes the batch of given samples; pickles into grain's worker processes."""

    def __init__(self, sources: Sequence[Source], data: DataConfig, model: ModelConfig):
        self.sources, self.data = sources, data
        self.slots, self.width = Slots(model), query_width(model)
        vision = model.vision
        self.pixels = (vision.input_size, vision.input_size, 3)
        self.features = state_shape(model.tower)
        self.buckets = query_buckets(data, model)

    def __call__(self, draw: BatchPlan) -> tuple[Batch, Read]:
        """The batch of a draw, and what came of its samples.

        The samples of a row follow each other. One that is left out takes no room: those behind it move
        up, and a row that held nothing else is empty, without text and pictures.
        """
        ids = draw.ids if draw.ids.ndim == 2 else draw.ids[:, None]
        b, s, i = len(ids), draw.length, draw.images
        codes, loss = np.zeros((b, s), np.int32), np.zeros((b, s), bool)
        positions, segments = np.zeros((2, b, s), np.int32)
        asked, query_ends = [list[np.ndarray]() for _ in range(b)], np.full((b, i), -1, np.int32)
        seen: np.ndarray | None = None
        if i and self.data.cached_features:
            seen = np.zeros((b, i, *self.features), np.float16)
        elif i:
            seen = np.zeros((b, i, *self.pixels), np.uint8)
        query_features: np.ndarray | None = None
        if i and self.data.cached_queries:
            query_features = np.zeros((b, i, self.width), np.float16)
        truncated, cut_questions, left_out = list[int](), list[int](), list[LeftOut]()
        for place, row in enumerate(ids.tolist()):
            start, picture, segment, question = 0, 0, 0, 0
            for identity in row:
                if identity < 0:
                    continue
                try:
                    made, query = self._sample(identity, None if seen is None else seen[place, picture:])
                    pictures = made.places
                except BadRow as bad:
                    left_out.append(LeftOut(identity, bad.fault, str(bad)))
                    continue
                if not len(made.codes):
                    left_out.append(
                        LeftOut(
                            identity,
                            DROPPED,
                            f"{self._where(identity)}: it is longer than "
                            f"data.max_length {self.data.max_length}",
                        )
                    )
                    continue
                laid = self.slots(made.codes, made.loss, picture, draw.visual_tokens)
                length = len(laid[0])
                here, segment = slice(start, start + length), segment + 1
                codes[place, here], loss[place, here] = laid
                segments[place, here] = segment
                positions[place, here] = np.arange(length)
                asked[place].append(made.queries)
                query_ends[place, picture : picture + pictures] = question + made.query_ends
                question += len(made.queries)
                if query is not None and query_features is not None:
                    query_features[place, picture : picture + pictures] = query
                start, picture = start + length, picture + pictures
                if made.cut:
                    truncated.append(identity)
                if made.query_cut:
                    cut_questions.append(identity)
        q = (draw.query_length or bucket(max(sum(map(len, row)) for row in asked), self.buckets)) if i else 0
        queries, query_segments = np.zeros((2, b, q), np.int32)
        for place, row_asked in enumerate(asked):
            flat = np.concatenate([np.zeros(0, np.int32), *row_asked])
            queries[place, : len(flat)] = flat
            query_segments[place] = question_segments(query_ends[place][query_ends[place] >= 0], q)
        cached = self.data.cached_features
        batch = Batch(
            tokens=np.maximum(codes, 0),
            slots=np.where(codes < 0, -1 - codes, -1),
            labels=np.where(loss, codes, IGNORE),
            positions=positions,
            segments=segments,
            queries=queries,
            query_segments=query_segments,
            query_ends=query_ends,
            pixels=None if cached else seen,
            features=seen if cached else None,
            query_features=query_features,
            ids=draw.ids,
        )
        rows = int((ids >= 0).sum())
        return batch, Read(rows, tuple(truncated), tuple(cut_questions), tuple(left_out))

    def _where(self, identity: int) -> str:
        return self.sources[identity >> 32].where(identity & 0xFFFFFFFF)

    def _sample(self, identity: int, seen: np.ndarray | None) -> tuple[Encoded, np.ndarray | None]:
        """A sample, its pictures written to the front of `seen` [.., ...], and its stored query feature if
        queries are stored.

        Raises:
          BadRow: `seen` is then as it was, zeros.
        """
        source, row = self.sources[identity >> 32], identity & 0xFFFFFFFF
        made = source.encoded(row)
        if not len(made.codes) or not made.places or seen is None:
            return made, None
        query = source.query(row) if self.data.cached_queries else None
        try:
            (source.write_features if self.data.cached_features else source.write_pixels)(row, seen)
        except BadRow:
            seen[: made.places] = 0
            raise
        return made, query


class Take:
    """Picks one process's rows of a batch; pickles into grain's worker processes."""

    def __init__(self, rows: Sequence[int] | np.ndarray):
        self.rows = np.asarray(rows)

    def __call__(self, draw: BatchPlan) -> BatchPlan:
        return draw._replace(ids=draw.ids[self.rows])


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
        rest = self._batches[self._taken :]
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
            raise UserError(
                f"the saved data position is of another stream ({stream}, now {self._stream}); "
                "continue with the same sources, weights, seed and batch size"
            )
        self.close()
        self._taken = state["taken"]

    def close(self) -> None:
        """Stops prefetching; the next batch would start it again."""
        if self._inner is not None:
            reader = getattr(self._inner, "_executor", None)
            self._inner.close()
            if reader is not None:
                # Grain leaves its thread behind to finish the batch that it is making.
                reader.shutdown(wait=True)
            if self._workers:
                end_deletions()
            self._inner = None

    def __enter__(self) -> "DataIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def end_deletions() -> None:
    """Ends the threads that free what worker processes have sent; grain would keep them until the end of
    this process, and makes new ones for the next iterator."""
    from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

    threads, SharedMemoryArray._del_thread_pool = SharedMemoryArray._del_thread_pool, None
    if threads is not None:
        threads.close()
        threads.join()


def make_iterator(
    data: DataConfig,
    model: ModelConfig,
    batch_size: int,
    seed: int,
    *,
    rows: Sequence[int] | np.ndarray | None = None,
    fingerprint: str | None = None,
) -> DataIterator:
    """An endless, shuffled, mixed stream of training batches, as `data.batching` says.

    Without weights every epoch of the joined sources visits each row once; with weights every source
    is repeated on its own, each of its epochs visiting each of its rows once. Each epoch has its own
    order. Batches run across the ends of epochs, but for the grouped ones, of which an epoch's last may
    have empty places.

    Args:
      data: Sources, template, lengths, batching and workers.
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
    draws, stream = draw_batches(sources, data, model, batch_size, seed)
    batches = grain.MapDataset.source(draws)
    if rows is not None:
        batches = batches.map(Take(rows))
    return DataIterator(batches.map(Collate(sources, data, model)), stream, data)


def draw_batches(
    sources: Sequence[Source], data: DataConfig, model: ModelConfig, batch_size: int, seed: int
) -> tuple[Sequence[BatchPlan], dict[str, Any]]:
    """Which samples each batch of a stream holds, and what identifies the stream.

    Raises:
      UserError: as `make_iterator`.
    """
    sizes, weights = [len(source) for source in sources], [config.weight for config in data.sources]
    given = [weight for weight in weights if weight is not None]
    if given and (len(given) < len(weights) or min(given) <= 0):
        raise UserError(
            f"the weights of data.sources are {weights}; give every source a positive one, or none"
        )
    order = Order(sizes, given or None, seed)
    stream: dict[str, Any] = {
        "rows": order.rows,
        "sources": sizes,
        "weights": weights,
        "seed": seed,
        "batch_size": batch_size,
        "batching": data.batching,
    }
    draws: Sequence[BatchPlan]
    images = data.row_images(model.visual_tokens, model.vision.places)
    buckets = query_buckets(data, model)
    measures = RowLengths(*np.zeros((3, 0), np.int32))
    if data.batching != "pad" or (images and len(buckets) > 1):
        measures = measure(sources, data, model.visual_tokens, arrangement_settings(model))
    queries = Queries(buckets, measures.queries)
    if data.batching == "pad":
        draws = Padded(order, queries, batch_size, data.max_length, images)
    else:
        stream |= {"window": data.lookahead_rows, "lengths": measures.digest()}
        if data.batching == "grouped":
            draws = Grouped(
                order, measures, queries, batch_size, data.lookahead_rows, row_lengths(data), images
            )
        else:
            stream |= {"max_length": data.max_length, "images": images}
            draws = Packed(order, measures, queries, batch_size, data.lookahead_rows, data.max_length, images)
    if values := choices(data, model):
        return Elastic(draws, data, model, seed), stream | {"elastic": list(values)}
    return draws, stream


def eval_batches(
    data: DataConfig,
    model: ModelConfig,
    batch_size: int,
    *,
    prompts: bool = False,
    fingerprint: str | None = None,
    tally: Tally | None = None,
) -> Iterator[Batch]:
    """Every row once, in order, source by source.

    Args:
      data: Sources, template and lengths; weights and workers play no part.
      model: Sizes of pictures or features and visual tokens.
      batch_size: Rows of a batch.
      prompts: Stop each row where its first answer begins (for generation) instead of laying out
        the whole conversation with its labels.
      fingerprint: The tower that cached features must be of; None takes any.
      tally: Is told what came of the rows of each batch, before it is given out.

    Yields:
      numpy `Batch`es of batch_size rows; the last is filled with empty rows of id -1.

    Raises:
      UserError: as `make_iterator`, and for any bad row: what is left out cannot be scored.
    """
    data = dataclasses.replace(data, batching="pad", bad_rows="error")
    sources, strict = open_sources(data, model, fingerprint, prompts), Tally(data, 0)
    assemble = Collate(sources, data, model)
    images = data.row_images(model.visual_tokens, model.vision.places)
    ids = np.concatenate([row_ids(number, len(source)) for number, source in enumerate(sources)])
    for start in range(0, len(ids), batch_size):
        chosen = ids[start : start + batch_size]
        fill = np.full(batch_size - len(chosen), -1, np.int64)
        filled = np.concatenate([chosen, fill])
        batch, read = assemble(BatchPlan(filled, data.max_length, images))
        strict.add(read)
        if tally is not None:
            tally.add(read)
        yield batch


def rows_by_id(data: DataConfig) -> dict[int, dict[str, Any]]:
    """The LLaVA-format row behind each id of `Batch.ids`: question, answer, kind, picture."""
    found: dict[int, dict[str, Any]] = {}
    for number, config in enumerate(data.sources):
        rows = read_rows(config)
        found.update(zip(row_ids(number, len(rows)).tolist(), rows, strict=True))
    return found
