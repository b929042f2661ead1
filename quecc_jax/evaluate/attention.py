"""Where the compressor looks: QueCC's attention weights for the questions of a data set."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.pipeline import eval_batches, rows_by_id
from quecc_jax.evaluate.predict import picture_keys
from quecc_jax.generate.decode import decoding_params
from quecc_jax.generate.reuse import Encoders, Reuse
from quecc_jax.geometry import served


def attention_maps(
    model: ModelConfig, data: DataConfig, params: dict[str, Any], batch_size: int = 128
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Every row that has pictures, with the weights its visual tokens were averaged by.

    Yields:
      The LLaVA-format row, and float32 [I, V, H, g / h, g / h] for its I pictures: each of the V tokens
      attends to its own square of the g x g patches with H heads; a token's weights sum to one per head.

    Raises:
      UserError: a source cannot be read.
    """
    model = served(model)
    encode, rows = Encoders(model, Reuse()), rows_by_id(data)
    params = decoding_params(params, model)
    for batch in eval_batches(data, model, batch_size, prompts=True):
        assert batch.ids is not None
        ids = batch.ids.tolist()
        _, weights = encode(params, batch, [picture_keys(i, rows[i]) if i >= 0 else [] for i in ids])
        if weights is None:
            continue
        for identity, found, lengths in zip(ids, np.asarray(weights), batch.query_lengths, strict=True):
            present = int(np.count_nonzero(lengths))
            if identity >= 0 and present:
                yield rows[identity], found[:present]


def patch_map(weights: np.ndarray) -> np.ndarray:
    """Attention over the whole picture, [g, g], of one picture's weights [V, H, g / h, g / h]: the mean
    over heads, every token's square in its place; each square sums to one."""
    v, _, region, _ = weights.shape
    side = math.isqrt(v)
    squares = weights.mean(axis=1).reshape(side, side, region, region)
    return squares.transpose(0, 2, 1, 3).reshape(side * region, side * region)
