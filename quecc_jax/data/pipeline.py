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

from collections.abc import Sequence

import grain
import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.collate import Collate
from quecc_jax.data.elastic import Elastic, choices
from quecc_jax.data.iterator import DataIterator
from quecc_jax.data.lengths import measure
from quecc_jax.data.plans.packing import (
    BatchPlan,
    Grouped,
    OneEpoch,
    Packed,
    Padded,
    Queries,
    RowLengths,
    length_buckets,
)
from quecc_jax.data.sampler import Sampler, spread
from quecc_jax.data.sources.open import open_sources
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
    held_out: bool = False,
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
      held_out: The rows that `data.held_out` leaves out of training, each once, without weights; the stream ends.

    Returns:
      Yields numpy `Batch`es of these rows, `ids` filled.

    Raises:
      UserError: a source cannot be read, or the settings do not fit together. The iterator raises it
        for bad rows, as `data.bad_rows` and `data.max_bad_share` say.
    """
    sources = open_sources(data, model, fingerprint)
    plans, stream = plan_batches(sources, data, model, batch_size, seed, held_out)
    batches = grain.MapDataset.source(plans)
    if rows is not None:
        batches = batches.map(Take(rows, data.rows_per_pool))
    rows_of_all = sum(map(len, sources))
    return DataIterator(batches.map(Collate(sources, data, model)), stream, rows_of_all, data)


class Take:
    """Picks one process's rows of a batch; pickles into grain's worker processes."""

    def __init__(self, rows: Sequence[int] | np.ndarray, pooled: int = 1):
        """
        Args:
          rows: of the batch, in the order in which the process holds them.
          pooled: rows of a pool.

        Raises:
          UserError: the rows are not whole pools.
        """
        self.rows = np.asarray(rows)
        pools = self.rows[: len(self.rows) // pooled * pooled].reshape(-1, pooled)
        if self.rows.size % pooled or (pools != pools[:, :1] // pooled * pooled + np.arange(pooled)).any():
            raise UserError(
                f"rows {self.rows.tolist()} of a batch are not whole pools of data.pooled_rows {pooled}"
            )

    def __call__(self, plan: BatchPlan) -> BatchPlan:
        return plan._replace(ids=plan.ids[self.rows])


def plan_batches(
    sources: Sequence[Source],
    data: DataConfig,
    model: ModelConfig,
    batch_size: int,
    seed: int,
    held_out: bool = False,
) -> tuple[Sequence[BatchPlan], dict[str, object]]:
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
    order = Sampler(sizes, None if held_out else given or None, seed, _taken(sizes, data, held_out))
    if 0 in order.sizes and given and not held_out:
        raise UserError("data.held_out leaves no row of a source with a weight; hold out fewer")
    stream: dict[str, object] = {
        "rows": order.rows,
        "sources": sizes,
        "weights": weights,
        "seed": seed,
        "batch_size": batch_size,
        "batching": data.batching,
        **({"held_out": data.held_out} if data.held_out else {}),
    }
    plans: Sequence[BatchPlan]
    images = data.row_images(model.visual_tokens, model.vision.max_crops)
    buckets = query_buckets(data, model)
    of_rows = RowLengths(*np.zeros((3, 0), np.int32))
    if data.batching != "pad" or (images and len(buckets) > 1):
        of_rows = measure(sources, data, model.visual_tokens, arrangement_settings(model))
    queries = Queries(buckets, of_rows.queries)
    if data.batching == "pad":
        plans = Padded(order, queries, batch_size, data.max_length, images)
    else:
        stream |= {"window": data.lookahead_rows, "lengths": of_rows.digest()}
        if data.batching == "grouped":
            plans = Grouped(
                order, of_rows, queries, batch_size, data.lookahead_rows, length_buckets(data), images
            )
        else:
            stream |= {"max_length": data.max_length, "images": images}
            pooled = data.rows_per_pool
            if batch_size % pooled:
                raise UserError(
                    f"{batch_size} rows of a batch are not whole pools of data.pooled_rows {pooled}"
                )
            stream |= {"pooled_rows": pooled} if pooled > 1 else {}
            plans = Packed(
                order, of_rows, queries, batch_size, data.lookahead_rows, data.max_length, images, pooled
            )
    if held_out:
        plans = OneEpoch(plans, batch_size)
    if values := choices(data, model):
        return Elastic(plans, data, model, seed), stream | {"elastic": list(values)}
    return plans, stream


def _taken(sizes: Sequence[int], data: DataConfig, held_out: bool) -> np.ndarray | None:
    """bool [rows of all sources]: those that are held out, or the others; None where no row is."""
    if not data.held_out:
        return None
    if data.held_out >= sum(sizes):
        raise UserError(f"data.held_out is {data.held_out} of {sum(sizes)} rows; leave some to train on")
    chosen = spread(sum(sizes), data.held_out)
    return chosen if held_out else ~chosen
