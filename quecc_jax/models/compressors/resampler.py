"""A learned-query resampler, as in Flamingo (arXiv 2204.14198) and BLIP-2 (arXiv 2301.12597)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import EPS, Features, RegionAttention, image_grid
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.positions import sine_cosine
from quecc_jax.models.compressors.resampler_config import BLOCKS, WIDENING, ResamplerConfig
from quecc_jax.models.layers import LayerNorm, constrain_batch, linear, with_axes


def build(settings: ResamplerConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    return Resampler(settings.num_tokens(sizes.grid), settings.heads, dtype, name=name)


class Resampler(nn.Module):
    """V learned queries read the whole image in two blocks, then a LayerNorm.

    A block is q += Attention(LN(q), LN(x) + pos, LN(x)), then q += MLP(LN(q)), with 2-D sine-cosine
    positions of the patches.
    """

    tokens: int
    heads: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """Compressed tokens [P, V, D] of X_s [P, N, D]; X_m and the question are not read.

        Raises:
          ValueError: n is not a square, D is not a multiple of four, or the heads do not divide D.
        """
        del query
        x = features.single.astype(self.dtype)
        positions = jnp.asarray(sine_cosine(image_grid(x), x.shape[-1]), self.dtype)
        learned = self.param(
            "queries", with_axes(nn.initializers.normal(1.0), None, "embed"), (self.tokens, x.shape[-1])
        )
        q = jnp.broadcast_to(learned.astype(self.dtype), (x.shape[0], *learned.shape))
        for i in range(BLOCKS):
            q = Block(self.heads, self.dtype, name=f"block{i + 1}")(constrain_batch(q), x, positions)
        return LayerNorm(EPS, name="norm")(q)


class Block(nn.Module):
    """Cross-attention and an MLP, each behind a norm and beside a residual connection."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, q: Float[Array, "P V D"], x: Float[Array, "P N D"], positions: Float[Array, "N D"]
    ) -> Float[Array, "P V D"]:
        """q [P, V, D], x [P, N, D] and positions [N, D] -> [P, V, D]."""
        width, dense = q.shape[-1], functools.partial(linear, dtype=self.dtype)
        x = LayerNorm(EPS, name="x_norm")(x)
        attend = RegionAttention(self.heads, self.dtype, name="attention")
        q = q + attend(LayerNorm(EPS, name="q_norm")(q), x + positions, x)
        y = dense(WIDENING * width, ("embed", "mlp"), name="fc1")(LayerNorm(EPS, name="mlp_norm")(q))
        return q + dense(width, ("mlp", "embed"), name="fc2")(jax.nn.gelu(y, approximate=False))
