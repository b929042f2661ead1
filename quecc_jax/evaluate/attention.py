"""Where a compressor looks: its attention weights for the questions of a data set, and what to draw."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.pipeline import eval_batches, rows_by_id
from quecc_jax.evaluate.predict import picture_keys
from quecc_jax.generate.decode import decoding_params
from quecc_jax.generate.reuse import Encoders, Reuse


def attention_maps(
    model: ModelConfig, data: DataConfig, params: dict[str, Any], batch_size: int = 32
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Every row that has pictures, with the weights its visual tokens were averaged by.

    Yields:
      The LLaVA-format row, and float32 [I, V, H, g, g] for its I pictures: how each of the V tokens attends
      to the g x g patches with H heads; see `Encoders.attention`. Nothing, if the compressor does not attend.

    Raises:
      UserError: a source cannot be read.
    """
    model = at_visual_tokens(model)
    encode, rows = Encoders(model, Reuse()), rows_by_id(data)
    params = decoding_params(params, model)
    for batch in eval_batches(data, model, batch_size, prompts=True):
        assert batch.ids is not None
        ids = batch.ids.tolist()
        weights = encode.attention(params, batch, [picture_keys(i, rows[i]) if i >= 0 else [] for i in ids])
        if weights is None:
            continue
        for identity, found, ends in zip(ids, weights, batch.query_ends, strict=True):
            present = int(np.count_nonzero(ends >= 0))
            if identity >= 0 and present:
                yield rows[identity], found[:present]


def patch_map(weights: np.ndarray) -> np.ndarray:
    """How often a patch is looked at, [g, g], of one picture's weights [V, H, g, g]: the mean over tokens and
    heads, where 1 is what every patch gets from tokens that look nowhere in particular."""
    return weights.mean(axis=(0, 1)) * weights[0, 0].size


def own_squares(weights: np.ndarray) -> int:
    """Tokens h along a side, if those of weights [V, H, g, g] each see their own of h x h squares alone; else
    1: they see the whole picture."""
    v, grid = len(weights), weights.shape[-1]
    side = math.isqrt(v)
    if side * side != v or grid % side:
        return 1
    squares = weights.reshape(v, -1, side, grid // side, side, grid // side).sum(axis=(1, 3, 5))
    return side if np.count_nonzero(squares) == np.count_nonzero(squares.reshape(v, v).diagonal()) else 1
