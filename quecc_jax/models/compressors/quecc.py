"""QueCC: query-based convolutional cross-attention compression (arXiv 2411.03312, section 4)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import (
    EPS,
    Features,
    MLPNorm,
    RegionAttention,
    attend_by_region,
    image_grid,
)
from quecc_jax.models.compressors.base_config import Sizes, output_grid
from quecc_jax.models.compressors.quecc_config import QueccConfig
from quecc_jax.models.layers import LayerNorm, constrain_batch, linear, with_axes


def build(settings: QueccConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    kernel, stride, windows = settings.windows(sizes.grid)
    return QueCC(kernel, stride, sizes.width, settings.heads, dtype, windows, name=name)


class Prepared(NamedTuple):
    """What QueCC computes of P images, whatever is asked about them."""

    single: jax.Array
    """X_s [P, N, D]"""
    keys: jax.Array
    """[P, N, D] of X_m."""
    values: jax.Array
    """[P, N, D] of X_m."""


class QueCC(nn.Module):
    """The compressor. `kernel` and `stride` are in patches; V = output_grid(...)^2.

    An elastic one makes tokens at several V of the same weights. Nothing but the convolution depends on V:
    its one kernel is learned for the largest window (the fewest tokens) and resized to the others
    (`DepthwiseConv`); towers, text projection and attention are shared as they are, and the towers run once
    for all V. With a single V it is plain QueCC.
    """

    kernel: int
    stride: int
    width: int
    """D"""
    heads: int = 8
    dtype: DTypeLike = jnp.float32
    windows: tuple[int, ...] = ()
    """Sides of an elastic compressor's windows, one for each V; they do not overlap, whatever `stride` is."""

    def setup(self) -> None:
        self.text_projection = linear(self.width, ("mlp", "embed"), dtype=self.dtype)
        self.text_norm = LayerNorm(EPS)
        self.q_proj, self.k_proj, self.v_proj = (MLPNorm(self.width, self.dtype) for _ in range(3))
        self.q_downsample = DepthwiseConv(self.kernel, self.stride, self.dtype)
        self.clip_attn = RegionAttention(self.heads, self.dtype)

    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """Compressed tokens [P, V, D] of features X_s [P, N, D] and X_m [P, N, levels * D] and the
        questions' features t [P, 1, text_width]; of several V, those of one behind those of the other.

        Raises:
          ValueError: n is not a square, the output grid does not divide the input's, or the heads
            do not divide D.
        """
        return self.finish(self.prepare(features), query)

    def prepare(self, features: Features) -> Prepared:
        """The image's part, the same at every V."""
        single, multi = (x.astype(self.dtype) for x in (features.single, features.multi))
        return Prepared(single, self.k_proj(multi), self.v_proj(multi))

    def finish(self, prepared: Prepared, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """The question's part."""
        single, k, v = prepared
        p, _, width = single.shape
        grid = image_grid(single)
        text = self.text_projection(query.astype(self.dtype))
        text = constrain_batch(self.text_norm(constrain_batch(text)))
        q = self.q_proj(single + text).reshape(p, grid, grid, width)
        made = [self.q_downsample(q, window) for window in self.windows or (0,)]
        q = constrain_batch(jnp.concatenate([x.reshape(p, -1, width) for x in made], axis=1))
        return attend_by_region(self.clip_attn, q, k, v, [x.shape[1] for x in made])


class DepthwiseConv(nn.Module):
    """Depthwise convolution without padding: every channel has its own kernel.

    A smaller window w uses the kernel resized from k x k to w x w: each of its weights is the sum of what it
    covers, R K R^T with R [w, k] the lengths in which w equal parts of a line overlap its k equal parts, in
    units of the latter. So the kernel is one weighting of a region, seen at several resolutions: a pattern in
    the region keeps its weight at every V, the sum stays the same, and any w fits any k (4 and 6, say). It
    also keeps initialisation right: where w divides k, sums of k / w by k / w independent weights of variance
    1 / k^2 are independent weights of variance 1 / w^2, those of a kernel of side w from the start.
    """

    kernel: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "P g g D"], window: int = 0) -> Float[Array, "P h h D"]:
        """x [B, g, g, D] -> [B, h, h, D]; `window` is the side that the kernel is resized to, and the stride
        then, if it is not 0."""
        b, grid, _, width = x.shape
        k, s = self.kernel, window or self.stride
        side = output_grid(grid, window or k, s)
        init = with_axes(
            nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1)),
            None,
            None,
            None,
            "embed",
        )
        kernel = self.param("kernel", init, (k, k, 1, width))
        if window and window != k:
            parts = jnp.asarray(overlaps(window, k))
            kernel = jnp.einsum("ar,bs,rsod->abod", parts, parts, kernel, precision="highest")
            k = window
        kernel = kernel.astype(self.dtype)
        bias = self.param("bias", with_axes(nn.initializers.zeros, "embed"), (width,)).astype(self.dtype)
        if k == s:
            # Windows that do not overlap are a weighted sum, which every backend runs as one pass.
            windows = x[:, : side * s, : side * s].reshape(b, side, s, side, s, width)
            return jnp.einsum("bhrwsd,rsd->bhwd", windows, kernel[:, :, 0]) + bias
        out = jax.lax.conv_general_dilated(
            x, kernel, (s, s), "VALID", feature_group_count=width, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out + bias


def overlaps(coarse: int, fine: int) -> np.ndarray:
    """float32 [coarse, fine]: in how much of its length each of `fine` equal parts of a line lies within each
    of `coarse` equal parts; columns sum to one."""
    edges = np.arange(coarse + 1) * (fine / coarse)
    start, part = edges[:-1, None], np.arange(fine)
    shared = np.minimum(edges[1:, None], part + 1) - np.maximum(start, part)
    return np.maximum(shared, 0).astype(np.float32)
