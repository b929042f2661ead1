"""MQT, the Matryoshka query transformer (arXiv 2405.19315): the first V of many learned queries."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.models.compressors.base import (
    EPS,
    NORM,
    Cost,
    Features,
    RegionAttention,
    attention_products,
    picture_grid,
)
from quecc_jax.models.compressors.positions import bicubic, sine_cosine
from quecc_jax.models.layers import LayerNorm, with_axes


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model. The original's matrix to the decoder's width is the projector `matrix`."""
    c = config.compressor
    return MQT(c.queries, config.num_output_tokens, c.heads, dtype, name=name)


def cost(config: ModelConfig) -> Cost:
    """All queries' weights, the attention of V of them, and the norms of n keys and values.

    What keys and queries make is the same for all pictures of a batch, but counted for each.
    """
    d, n, v, c = (
        config.vision.feature_width,
        config.vision.patches,
        config.num_output_tokens,
        config.compressor,
    )
    return Cost(c.queries * d + 4 * d * d, 2.0 * attention_products(d, n, v, c.heads) + 2 * NORM * n * d)


class MQT(nn.Module):
    """tokens = Attention(LN((q + pos)[:V]), LN(resize(pos)), LN(X_s)).

    The learned queries q stand on a square with 2-D sine-cosine positions pos; the keys are these
    positions alone, resized to the picture's grid by bicubic interpolation, so that where a query looks
    does not depend on the picture.
    """

    queries: int
    """How many there are, a square number."""
    tokens: int
    """V: how many are used."""
    heads: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Features, query: jax.Array, batch: Batch | None = None) -> jax.Array:
        """Compressed tokens [P, V, D] of X_s [P, n, D]; X_m and the question are not read.

        Raises:
          ValueError: n is not a square, D is not a multiple of four, or the heads do not divide D.
        """
        del query, batch
        x = features.single.astype(self.dtype)
        grid, width = picture_grid(x), x.shape[-1]
        positions = sine_cosine(round(self.queries**0.5), width)
        init = with_axes(nn.initializers.truncated_normal(0.02), None, "embed")
        learned = self.param("queries", init, (self.queries, width))
        q = LayerNorm(EPS, name="q_norm")(learned[: self.tokens] + positions[: self.tokens])
        k = LayerNorm(EPS, name="k_norm")(jnp.asarray(bicubic(positions, grid)))
        v = LayerNorm(EPS, name="v_norm")(x)
        attend = RegionAttention(self.heads, self.dtype, name="attention")
        return attend(q.astype(self.dtype)[None], k.astype(self.dtype)[None], v)
