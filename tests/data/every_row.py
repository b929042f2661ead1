"""Every row of some sources: as batches in order, and as it stands in its file."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.bad_rows import Tally
from quecc_jax.data.batch import Batch
from quecc_jax.data.collate import Collate
from quecc_jax.data.plans.packing import BatchPlan
from quecc_jax.data.sources.open import open_sources, read_rows


def eval_batches(
    data: DataConfig,
    model: ModelConfig,
    batch_size: int,
    *,
    prompts: bool = False,
    fingerprint: str | None = None,
    tally: Tally | None = None,
) -> Iterator[Batch]:
    """Every row once, in order, source by source; the last batch is filled with empty rows of id -1.

    Args:
      prompts: Stop each row where its first answer begins.
      fingerprint: The tower that cached features must be of.
      tally: Is told what came of the rows of each batch, before it is given out.
    """
    data = dataclasses.replace(data, batching="pad", bad_rows="error")
    sources, strict = open_sources(data, model, fingerprint, 0 if prompts else None), Tally(data, 0)
    collate = Collate(sources, data, model)
    images = data.row_images(model.visual_tokens, model.vision.max_crops)
    ids = np.concatenate([row_ids(number, len(source)) for number, source in enumerate(sources)])
    for start in range(0, len(ids), batch_size):
        chosen = ids[start : start + batch_size]
        filled = np.concatenate([chosen, np.full(batch_size - len(chosen), -1, np.int64)])
        batch, read = collate(BatchPlan(filled, data.max_length, images))
        strict.add(read)
        if tally is not None:
            tally.add(read)
        yield batch


def rows_by_id(data: DataConfig) -> dict[int, Any]:
    """The LLaVA-format row behind each id of `Batch.ids`: question, answer, kind, image."""
    found: dict[int, Any] = {}
    for number, config in enumerate(data.sources):
        rows = read_rows(config)
        found.update(zip(row_ids(number, len(rows)).tolist(), rows, strict=True))
    return found


def row_ids(source: int, rows: int) -> np.ndarray:
    """int64 [rows] identities of the samples of the source-th source: source * 2^32 + row."""
    return (np.int64(source) << 32) + np.arange(rows, dtype=np.int64)
