"""QueCC: query-based convolutional cross-attention compression (arXiv 2411.03312, section 4)."""

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
    return QueCC(kernel, stride, settings.heads, dtype, windows, name=name)


class QueCC(nn.Module):
    """The compressor. `kernel` and `stride` are in patches; V = output_grid(...)^2.

    An elastic one makes tokens at several V of the same weights. Nothing but the convolution depends on V:
    its one kernel is learned for the largest window (the fewest tokens) and resized to the others
    (`DepthwiseConv`); towers, text projection and attention are shared as they are, and the towers run once
    for all V. With a single V it is plain QueCC.
    """

    kernel: int
    stride: int
    heads: int = 8
    dtype: DTypeLike = jnp.float32
    windows: tuple[int, ...] = ()
    """Sides of an elastic compressor's windows, one for each V; they do not overlap, whatever `stride` is."""

    @nn.compact
    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """Compressed tokens [P, V, D] of features X_s [P, N, D] and X_m [P, N, levels * D] and the
        questions' features t [P, 1, text_width]; of several V, those of one behind those of the other.

        Raises:
          ValueError: n is not a square, the output grid does not divide the input's, or the heads
            do not divide D.
        """
        single, multi, query = (x.astype(self.dtype) for x in (features.single, features.multi, query))
        (p, _, width), grid = single.shape, image_grid(single)

        text = linear(width, ("mlp", "embed"), dtype=self.dtype, name="text_projection")(query)
        text = constrain_batch(LayerNorm(EPS, name="text_norm")(constrain_batch(text)))
        q = MLPNorm(width, self.dtype, name="q_proj")(single + text)
        q = q.reshape(p, grid, grid, width)
        downsample = DepthwiseConv(self.kernel, self.stride, self.dtype, name="q_downsample")
        k = MLPNorm(width, self.dtype, name="k_proj")(multi)
        v = MLPNorm(width, self.dtype, name="v_proj")(multi)
        attend = RegionAttention(self.heads, self.dtype, name="clip_attn")
        made = [downsample(q, window) for window in self.windows or (0,)]
        q = constrain_batch(jnp.concatenate([x.reshape(p, -1, width) for x in made], axis=1))
        return attend_by_region(attend, q, k, v, [x.shape[1] for x in made])


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
