"""A depthwise convolution alone: what is left of QueCC without question, towers and attention."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import Features, image_grid
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.conv_config import ConvolutionConfig
from quecc_jax.models.compressors.quecc import DepthwiseConv
from quecc_jax.models.layers import constrain_batch


def build(settings: ConvolutionConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    kernel, stride, windows = settings.windows(sizes.grid)
    return Convolution(kernel, stride, dtype, windows, name=name)


class Convolution(nn.Module):
    """token[i, j, d] = sum over the window at (i, j) * stride of X_s[., ., d] w[., ., d], plus b[d]."""

    kernel: int
    stride: int
    dtype: DTypeLike = jnp.float32
    windows: tuple[int, ...] = ()
    """As QueCC's, whose convolution this is."""

    @nn.compact
    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """[P, V, D] of X_s [P, N, D], one V behind the other; X_m and the question are not read.

        Raises:
          ValueError: n is not a square, or the output grid does not divide the input's.
        """
        del query
        x, grid = features.single.astype(self.dtype), image_grid(features.single)
        x = x.reshape(x.shape[0], grid, grid, x.shape[-1])
        downsample = DepthwiseConv(self.kernel, self.stride, self.dtype, name="downsample")
        made = [downsample(x, window) for window in self.windows or (0,)]
        return constrain_batch(
            jnp.concatenate([y.reshape(x.shape[0], -1, x.shape[-1]) for y in made], axis=1)
        )
