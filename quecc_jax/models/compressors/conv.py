"""A depthwise convolution alone: what is left of QueCC without question, towers and attention."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.models.compressors.base import Cost, Features, picture_grid
from quecc_jax.models.compressors.quecc import DepthwiseConv
from quecc_jax.models.layers import by_rows


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model."""
    return Convolution(config.compressor.kernel, config.compressor.stride, dtype, name=name)


def cost(config: ModelConfig) -> Cost:
    """One k x k window and a bias per token and channel."""
    window, values = config.compressor.kernel**2, config.visual_tokens * config.vision.feature_width
    multiplied = 2.0 * window * values
    return Cost(window * config.vision.feature_width, multiplied + values, multiplied)


class Convolution(nn.Module):
    """token[i, j, d] = sum over the window at (i, j) * stride of X_s[., ., d] w[., ., d], plus b[d]."""

    kernel: int
    stride: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, query: jax.Array, batch: Batch | None = None) -> jax.Array:
        """[P, V, D] of X_s [P, n, D]; X_m and the question are not read.

        Raises:
          ValueError: n is not a square, or the output grid does not divide the input's.
        """
        del query, batch
        x, grid = features.single.astype(self.dtype), picture_grid(features.single)
        x = x.reshape(x.shape[0], grid, grid, x.shape[-1])
        x = by_rows(DepthwiseConv(self.kernel, self.stride, self.dtype, name="downsample")(x))
        return x.reshape(x.shape[0], -1, x.shape[-1])
