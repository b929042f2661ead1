"""A depthwise convolution alone: what is left of QueCC without question, towers and attention."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.models.compressors.base import Cost, Features, picture_grid
from quecc_jax.models.compressors.quecc import DepthwiseConv, windows
from quecc_jax.models.layers import constrain_batch


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model."""
    kernel, stride, sides = windows(config)
    return Convolution(kernel, stride, dtype, sides, name=name)


def cost(config: ModelConfig) -> Cost:
    """One k x k window and a bias per token and channel."""
    d, window = config.vision.feature_width, windows(config)[0] ** 2
    multiplied, values = 2.0 * window * config.num_output_tokens * d, config.num_output_tokens * d
    if config.compressor.elastic:
        # Windows that do not overlap read every patch once.
        multiplied = 2.0 * len(config.output_token_groups) * config.vision.patches * d
    return Cost(window * d, multiplied + values, multiplied)


class Convolution(nn.Module):
    """token[i, j, d] = sum over the window at (i, j) * stride of X_s[., ., d] w[., ., d], plus b[d]."""

    kernel: int
    stride: int
    dtype: Any = jnp.float32
    windows: tuple[int, ...] = ()
    """As QueCC's, whose convolution this is."""

    @nn.compact
    def __call__(self, features: Features, query: jax.Array, batch: Batch | None = None) -> jax.Array:
        """[P, V, D] of X_s [P, n, D], one V behind the other; X_m and the question are not read.

        Raises:
          ValueError: n is not a square, or the output grid does not divide the input's.
        """
        del query, batch
        x, grid = features.single.astype(self.dtype), picture_grid(features.single)
        x = x.reshape(x.shape[0], grid, grid, x.shape[-1])
        downsample = DepthwiseConv(self.kernel, self.stride, self.dtype, name="downsample")
        made = [downsample(x, window) for window in self.windows or (0,)]
        return constrain_batch(
            jnp.concatenate([y.reshape(x.shape[0], -1, x.shape[-1]) for y in made], axis=1)
        )
