"""MQT, the Matryoshka query transformer (arXiv 2405.19315): the first V of many learned queries."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import EPS, Features, RegionAttention, image_grid
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.mqt_config import MqtConfig
from quecc_jax.models.compressors.positions import bicubic, positions_of
from quecc_jax.models.layers import LayerNorm, with_axes


def build(settings: MqtConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings. The original's matrix to the decoder's width is the projector `matrix`."""
    tokens = settings.num_tokens(sizes.grid)
    return MQT(settings.queries, tokens, settings.heads, dtype, settings.stored_positions, name=name)


class MQT(nn.Module):
    """tokens = Attention(LN((q + pos)[:V]), LN(resize(pos)), LN(X_s)).

    The learned queries q stand on a square with 2-D sine-cosine positions pos; the keys are these
    positions alone, resized to the image's grid by bicubic interpolation, so that where a query looks
    does not depend on the image.
    """

    queries: int
    """How many there are, a square number."""
    tokens: int
    """V: how many are used."""
    heads: int = 8
    dtype: DTypeLike = jnp.float32
    stored_positions: bool = False
    """pos is a parameter."""

    @nn.compact
    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """Compressed tokens [P, V, D] of X_s [P, N, D]; X_m and the question are not read.

        Raises:
          ValueError: n is not a square, D is not a multiple of four, or the heads do not divide D.
        """
        del query
        x = features.single.astype(self.dtype)
        grid, width = image_grid(x), x.shape[-1]
        positions = positions_of(self, round(self.queries**0.5), width, self.stored_positions)
        init = with_axes(nn.initializers.truncated_normal(0.02), None, "embed")
        learned = self.param("queries", init, (self.queries, width))
        q = LayerNorm(EPS, name="q_norm")(learned[: self.tokens] + positions[: self.tokens])
        k = LayerNorm(EPS, name="k_norm")(jnp.asarray(bicubic(positions, grid)))
        v = LayerNorm(EPS, name="v_norm")(x)
        attend = RegionAttention(self.heads, self.dtype, name="attention")
        return attend(q.astype(self.dtype)[None], k.astype(self.dtype)[None], v)
