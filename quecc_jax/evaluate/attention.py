"""Where a compressor looks: its attention weights for the questions of a data set, and what to draw."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from quecc_jax.config import RunConfig
from quecc_jax.evaluate.answers import batched, row_prompts, source_rows
from quecc_jax.generate.decode import Params
from quecc_jax.generate.engine import Engine


def attention_maps(
    config: RunConfig, params: Params, batch_size: int = 32
) -> Iterator[tuple[Mapping[str, Any], np.ndarray]]:
    """Every row of `config.data.sources` that has images, with the weights its visual tokens are means by.

    Yields:
      The LLaVA-format row, and float32 [I, V, H, g, g] for its I images: how each of the V tokens attends
      to the g x g patches with H heads; see `Encoders.attention`. Nothing, if the compressor does not attend.

    Raises:
      UserError: a source cannot be read.
    """
    engine = Engine(config, params)
    asked = zip(source_rows(config.data), row_prompts(config.model, config.data), strict=True)
    for batch in batched(asked, batch_size):
        weights = engine.attention_maps([prompt for _, prompt in batch], batch_size)
        for ((_, row), prompt), found in zip(batch, () if weights is None else weights, strict=False):
            if prompt.encoded.crops:
                yield row, found[: prompt.encoded.crops]


def patch_map(weights: np.ndarray) -> np.ndarray:
    """How often a patch is looked at, [g, g], of one image's weights [V, H, g, g]: the mean over tokens and
    heads, where 1 is what every patch gets from tokens that look nowhere in particular."""
    return weights.mean(axis=(0, 1)) * weights[0, 0].size


def own_squares(weights: np.ndarray) -> int:
    """Tokens h along a side, if those of weights [V, H, g, g] each see their own of h x h squares alone; else
    1: they see the whole image."""
    v, grid = len(weights), weights.shape[-1]
    side = math.isqrt(v)
    if side * side != v or grid % side:
        return 1
    squares = weights.reshape(v, -1, side, grid // side, side, grid // side).sum(axis=(1, 3, 5))
    return side if np.count_nonzero(squares) == np.count_nonzero(squares.reshape(v, v).diagonal()) else 1
