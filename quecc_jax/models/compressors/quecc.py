"""QueCC: query-based convolutional cross-attention compression (arXiv 2411.03312, section 4)."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.geometry import output_grid
from quecc_jax.models.layers import LayerNorm, by_rows, linear, logical, matrix_init

EPS = 1e-6


class Tower(nn.Module):
    """Linear, exact GELU, Linear, LayerNorm; the first product may be computed outside."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, n, C] -> [B, n, D]."""
        x = linear(self.width, ("embed", "mlp"), dtype=self.dtype, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=False)
        x = linear(self.width, ("mlp", "embed"), dtype=self.dtype, name="fc2")(x)
        return LayerNorm(EPS, name="norm")(x)


class RegionAttention(nn.Module):
    """Multi-head attention of one query per region over that region's patches.

    With a single query the projections move to the query's side: keys are never projected (the
    key matrix is folded into the query), and values are projected after averaging. Per picture
    that replaces 2 n D^2 multiply-adds by 2 V D^2 + 2 n H D.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """queries [B, V, D], keys and values [B, V, R, D] for regions of R patches -> [B, V, D]."""
        width = queries.shape[-1]
        split = (self.heads, width // self.heads)
        kernels, biases = {}, {}
        for name in "qkv":
            axes = ("embed", "heads", "head_dim")
            kernels[name] = self.param(f"{name}_kernel", logical(matrix_init(1), *axes), (width, *split))
            biases[name] = self.param(f"{name}_bias", logical(nn.initializers.zeros, *axes[1:]), split)
        # The key bias adds the same number to every logit of a query, which softmax ignores; it
        # is declared because the original's checkpoints carry it.
        cast = functools.partial(jnp.asarray, dtype=self.dtype)
        q = jnp.einsum("bvd,dhk->bvhk", queries, cast(kernels["q"])) + cast(biases["q"])
        q = jnp.einsum("bvhk,dhk->bvhd", q, cast(kernels["k"]))
        logits = jnp.einsum("bvhd,bvrd->bvhr", q, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / math.sqrt(split[1]), axis=-1)
        self.sow("intermediates", "attention", weights)
        average = jnp.einsum("bvhr,bvrd->bvhd", weights.astype(self.dtype), values)
        out = jnp.einsum("bvhd,dhk->bvhk", average, cast(kernels["v"])) + cast(biases["v"])
        return linear(width, ("heads", "head_dim", "embed"), inputs=2, dtype=self.dtype, name="out")(out)


class QueCC(nn.Module):
    """The compressor. `kernel` and `stride` are in patches; V = output_grid(...)^2."""

    kernel: int
    stride: int
    heads: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, single: jax.Array, multi: jax.Array, query: jax.Array) -> jax.Array:
        """Compressed tokens [B, V, D].

        Args:
          single: X_s [B, n, D], patch features of the select layer.
          multi: X_m [B, n, levels * D].
          query: t [B, 1, H], the question's feature.

        Raises:
          ValueError: n is not a square, the output grid does not divide the input's, or the heads
            do not divide D.
        """
        b, n, width = single.shape
        grid = math.isqrt(n)
        if grid * grid != n:
            raise ValueError(f"{n} patches are not a square grid; drop CLS and keep the aspect square")
        if width % self.heads:
            raise ValueError(f"width {width} is not a multiple of {self.heads} heads")
        side = output_grid(grid, self.kernel, self.stride)
        single, multi, query = (x.astype(self.dtype) for x in (single, multi, query))

        text = linear(width, ("mlp", "embed"), dtype=self.dtype, name="text_projection")(query)
        text = by_rows(LayerNorm(EPS, name="text_norm")(by_rows(text)))
        q = Tower(width, self.dtype, name="q_proj")(single + text)
        q = DepthwiseConv(self.kernel, self.stride, self.dtype, name="q_downsample")(
            q.reshape(b, grid, grid, width)
        )
        k = Tower(width, self.dtype, name="k_proj")(multi)
        v = Tower(width, self.dtype, name="v_proj")(multi)

        region = grid // side

        def regions(x: jax.Array) -> jax.Array:
            x = x.reshape(b, side, region, side, region, width).transpose(0, 1, 3, 2, 4, 5)
            return x.reshape(b, side * side, region * region, width)

        attend = RegionAttention(self.heads, self.dtype, name="clip_attn")
        return attend(q.reshape(b, side * side, width), regions(k), regions(v))


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
