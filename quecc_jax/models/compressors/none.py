"""No compression: LLaVA-1.5's visual tokens."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.none_config import NoneConfig


def build(settings: NoneConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    del settings, sizes
    return Uncompressed(dtype, name=name)


class Uncompressed(nn.Module):
    """Passes the select layer's features on; it has no parameters."""

    dtype: DTypeLike = jnp.float32

    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P N D"]:
        """X_s [P, N, D] as it is; X_m and the query are not read."""
        del query
        return features.single.astype(self.dtype)
