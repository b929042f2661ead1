"""QueCC: query-based convolutional cross-attention compression (arXiv 2411.03312, section 4)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.geometry import output_grid, query_width
from quecc_jax.models.compressors.base import (
    EPS,
    Cost,
    Features,
    RegionAttention,
    Tower,
    picture_grid,
    regions,
)
from quecc_jax.models.layers import LayerNorm, by_rows, linear, logical


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model."""
    c = config.compressor
    return QueCC(c.kernel, c.stride, c.heads, dtype, name=name)


def cost(config: ModelConfig) -> Cost:
    """Towers, convolution, absorbed region attention and the question's projection."""
    d, n, v = config.vision.width, config.vision.patches, config.visual_tokens
    levels, heads, text = len(config.vision.levels), config.compressor.heads, query_width(config)
    towers = 2 * (levels * d * d + d * d) + 2 * d * d
    convolution = config.compressor.kernel**2 * d
    params = towers + 4 * d * d + convolution + text * d
    multiplied = n * towers + v * convolution + 4 * v * d * d + 2 * n * heads * d + text * d
    return Cost(params, 2.0 * multiplied, 2.0 * 2 * n * levels * d * d)


class QueCC(nn.Module):
    """The compressor. `kernel` and `stride` are in patches; V = output_grid(...)^2."""

    kernel: int
    stride: int
    heads: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, query: jax.Array, batch: Batch | None = None) -> jax.Array:
        """Compressed tokens [P, V, D] of features X_s [P, n, D] and X_m [P, n, levels * D] and the
        questions' features t [P, 1, H].

        Raises:
          ValueError: n is not a square, the output grid does not divide the input's, or the heads
            do not divide D.
        """
        del batch
        single, multi, query = (x.astype(self.dtype) for x in (features.single, features.multi, query))
        (p, _, width), grid = single.shape, picture_grid(single)
        side = output_grid(grid, self.kernel, self.stride)

        text = linear(width, ("mlp", "embed"), dtype=self.dtype, name="text_projection")(query)
        text = by_rows(LayerNorm(EPS, name="text_norm")(by_rows(text)))
        q = Tower(width, self.dtype, name="q_proj")(single + text)
        q = q.reshape(p, grid, grid, width)
        q = by_rows(DepthwiseConv(self.kernel, self.stride, self.dtype, name="q_downsample")(q))
        k = Tower(width, self.dtype, name="k_proj")(multi)
        v = Tower(width, self.dtype, name="v_proj")(multi)
        attend = RegionAttention(self.heads, self.dtype, name="clip_attn")
        return attend(q.reshape(p, side * side, width), regions(k, side), regions(v, side))


class DepthwiseConv(nn.Module):
    """Depthwise convolution without padding: every channel has its own kernel."""

    kernel: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, g, g, D] -> [B, h, h, D]."""
        b, grid, _, width = x.shape
        k, s = self.kernel, self.stride
        side = output_grid(grid, k, s)
        init = logical(nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1)),
                       None, None, None, "embed")  # fmt: skip
        kernel = self.param("kernel", init, (k, k, 1, width)).astype(self.dtype)
        bias = self.param("bias", logical(nn.initializers.zeros, "embed"), (width,)).astype(self.dtype)
        if k == s:
            # Windows that do not overlap are a weighted sum, which every backend runs as one pass.
            windows = x[:, : side * s, : side * s].reshape(b, side, s, side, s, width)
            return jnp.einsum("bhrwsd,rsd->bhwd", windows, kernel[:, :, 0]) + bias
        out = jax.lax.conv_general_dilated(
            x, kernel, (s, s), "VALID", feature_group_count=width,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return out + bias
