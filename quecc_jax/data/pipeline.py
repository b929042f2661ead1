"""Sources to a stream of fixed-shape batches, exactly resumable.

    open_sources    numbered rows of every data set                     sources.open
    Sampler         in which order they are read                        sampler
    plan_batches    which of them share a batch                         packing, elastic
    Collate         the arrays of a planned batch                       collate
    DataIterator    made ahead by grain, with a position to resume at   iterator

Only numbers of rows are shuffled, mixed, grouped and packed; grain then has threads or worker
processes turn the numbers of a batch into the batch. So any batch of the stream can be made without
those before it, and the state of the stream is the number of batches taken.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.bad_rows import Tally
from quecc_jax.data.batch import Batch
from quecc_jax.data.collate import Collate
from quecc_jax.data.elastic import Elastic, choices
from quecc_jax.data.iterator import DataIterator
from quecc_jax.data.lengths import measure
from quecc_jax.data.packing import BatchPlan, Grouped, Packed, Padded, Queries, RowLengths, row_lengths
from quecc_jax.data.sampler import Sampler
from quecc_jax.data.sources.open import open_sources, read_rows
from quecc_jax.data.sources.source import Source
from quecc_jax.data.text.queries import query_buckets
from quecc_jax.data.tiles import arrangement_settings
from quecc_jax.errors import UserError


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
    have empty rows.

    Args:
      data: Sources, template, lengths, batching and workers.
      model: Sizes of images or features and visual tokens.
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
    plans, stream = plan_batches(sources, data, model, batch_size, seed)
    batches = grain.MapDataset.source(plans)
    if rows is not None:
        batches = batches.map(Take(rows))
    return DataIterator(batches.map(Collate(sources, data, model)), stream, data)


class Take:
    """Picks one process's rows of a batch; pickles into grain's worker processes."""

    def __init__(self, rows: Sequence[int] | np.ndarray):
        self.rows = np.asarray(rows)

    def __call__(self, plan: BatchPlan) -> BatchPlan:
        return plan._replace(ids=plan.ids[self.rows])


def plan_batches(
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
    order = Sampler(sizes, given or None, seed)
    stream: dict[str, Any] = {
        "rows": order.rows,
        "sources": sizes,
        "weights": weights,
        "seed": seed,
        "batch_size": batch_size,
        "batching": data.batching,
    }
    plans: Sequence[BatchPlan]
    images = data.row_images(model.visual_tokens, model.vision.max_crops)
    buckets = query_buckets(data, model)
    measures = RowLengths(*np.zeros((3, 0), np.int32))
    if data.batching != "pad" or (images and len(buckets) > 1):
        measures = measure(sources, data, model.visual_tokens, arrangement_settings(model))
    queries = Queries(buckets, measures.queries)
    if data.batching == "pad":
        plans = Padded(order, queries, batch_size, data.max_length, images)
    else:
        stream |= {"window": data.lookahead_rows, "lengths": measures.digest()}
        if data.batching == "grouped":
            plans = Grouped(
                order, measures, queries, batch_size, data.lookahead_rows, row_lengths(data), images
            )
        else:
            stream |= {"max_length": data.max_length, "images": images}
            plans = Packed(order, measures, queries, batch_size, data.lookahead_rows, data.max_length, images)
    if values := choices(data, model):
        return Elastic(plans, data, model, seed), stream | {"elastic": list(values)}
    return plans, stream


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
      model: Sizes of images or features and visual tokens.
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
    collate = Collate(sources, data, model)
    images = data.row_images(model.visual_tokens, model.vision.max_crops)
    ids = np.concatenate([row_ids(number, len(source)) for number, source in enumerate(sources)])
    for start in range(0, len(ids), batch_size):
        chosen = ids[start : start + batch_size]
        fill = np.full(batch_size - len(chosen), -1, np.int64)
        filled = np.concatenate([chosen, fill])
        batch, read = collate(BatchPlan(filled, data.max_length, images))
        strict.add(read)
        if tally is not None:
            tally.add(read)
        yield batch


def rows_by_id(data: DataConfig) -> dict[int, dict[str, Any]]:
    """The LLaVA-format row behind each id of `Batch.ids`: question, answer, kind, image."""
    found: dict[int, dict[str, Any]] = {}
    for number, config in enumerate(data.sources):
        rows = read_rows(config)
        found.update(zip(row_ids(number, len(rows)).tolist(), rows, strict=True))
    return found


def row_ids(source: int, rows: int) -> np.ndarray:
    """int64 [rows] identities of the samples of the source-th source: source * 2^32 + row."""
    return (np.int64(source) << 32) + np.arange(rows, dtype=np.int64)
