"""TokenPacker (arXiv 2407.02392): coarse tokens that each take detail from their own region."""

import flax.linen as nn
import jax.numpy as jnp
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
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.tokenpacker_config import TokenPackerConfig
from quecc_jax.models.layers import LayerNorm, constrain_batch, linear


def build(settings: TokenPackerConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings. Its own MLP to the decoder's width is the projector `mlp2x_gelu`."""
    return TokenPacker(settings.sides(sizes.grid), settings.heads, dtype, name=name)


class TokenPacker(nn.Module):
    """q = LN(resize(X_s) W), k = LN(MLP(X_m)), v = LN(MLP(X_m)); each q attends to its own region.

    No weight depends on the sides h of the output grids, V = h^2 each: one set of weights makes any V.
    """

    sides: tuple[int, ...]
    heads: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """Compressed tokens [P, V, D] of X_s [P, N, D] and X_m [P, N, levels * D], one V behind the other; no
        question is read.

        Raises:
          ValueError: n is not a square, or the heads do not divide D.
        """
        del query
        single, multi = (x.astype(self.dtype) for x in (features.single, features.multi))
        q = linear(single.shape[-1], ("mlp", "embed"), bias=False, dtype=self.dtype, name="q_proj")(
            jnp.concatenate([region_centres(single, side) for side in self.sides], axis=1)
        )
        q = LayerNorm(EPS, name="q_norm")(constrain_batch(q))
        k = MLPNorm(single.shape[-1], self.dtype, name="k_proj")(multi)
        v = MLPNorm(single.shape[-1], self.dtype, name="v_proj")(multi)
        attend = RegionAttention(self.heads, self.dtype, name="clip_attn")
        return attend_by_region(attend, q, k, v, self.sides)


def region_centres(x: Float[Array, "P N D"], side: int) -> Float[Array, "P V D"]:
    """x [P, g^2, D] resized to [P, h^2, D] by bilinear interpolation with pixel centres aligned and no
    antialiasing: as h divides g, the patch in the middle of each region, or the mean of the four there."""
    p, _, width = x.shape
    region = image_grid(x) // side
    middle = slice((region - 1) // 2, region // 2 + 1)
    squares = x.reshape(p, side, region, side, region, width)[:, :, middle, :, middle]
    return squares.mean(axis=(2, 4), dtype=jnp.float32).astype(x.dtype).reshape(p, side * side, width)
