"""LLaVA-Mini (arXiv 2501.03895): a resampler to few tokens, and text that has read the whole image."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import EPS, Features, RegionAttention, image_grid
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.llava_mini_config import LlavaMiniConfig
from quecc_jax.models.compressors.positions import bicubic, positions_of
from quecc_jax.models.layers import LayerNorm, with_axes

PUBLISHED_EPS = 1e-5
"""Of the norms in the original's code, which are torch's as they come."""


def build(settings: LlavaMiniConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    return LlavaMini(settings, sizes, dtype, name=name)


class LlavaMini(nn.Module):
    """The resampler; the pre-fusion of text and patches is `fusion.Fusion`.

    tokens = Attention(LN(q) + pos, LN(X_s) + resize(pos), LN(X_s)) for a C x C grid of learned queries q,
    V = C^2, with 2-D sine-cosine positions pos, which the keys have resized to the patch grid by bicubic
    interpolation, as in MQT: all the same at C = 1, where only the patches' own states say where they are.
    """

    settings: LlavaMiniConfig
    sizes: Sizes
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.tokens = self.settings.num_tokens(self.sizes.grid)
        init = with_axes(nn.initializers.normal(0.02), None, "embed")
        self.queries = self.param("queries", init, (self.tokens, self.sizes.width))
        eps = PUBLISHED_EPS if self.settings.published else EPS
        self.q_norm, self.kv_norm = LayerNorm(eps), LayerNorm(eps)
        side = round(self.tokens**0.5)
        self.positions = positions_of(self, side, self.sizes.width, self.settings.published)
        self.attention = RegionAttention(self.settings.heads, self.dtype)

    def __call__(
        self, features: Features, query: Float[Array, "P 1 text_width"]
    ) -> Float[Array, "P V_and_memory D"]:
        """Compressed tokens [P, V, D] of X_s [P, N, D], and X_s itself behind them where there is a
        pre-fusion; X_m and the question's feature are not read.

        Raises:
          ValueError: n is not a square, D is not a multiple of four, or the heads do not divide D.
        """
        del query
        x = self.kv_norm(features.single.astype(self.dtype))
        q = (self.q_norm(self.queries) + self.positions).astype(self.dtype)
        places = jnp.asarray(bicubic(self.positions, image_grid(x)), self.dtype)
        tokens = self.attention(q[None], x + places, x)
        if not self.settings.fusion_layers > 0:
            return tokens
        return jnp.concatenate([tokens, features.single.astype(self.dtype)], axis=1)
