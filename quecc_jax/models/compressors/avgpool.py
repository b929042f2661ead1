"""Average pooling: each token is the mean of its square of patches."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.avgpool_config import AveragePoolConfig
from quecc_jax.models.compressors.base import Features, image_grid, regions
from quecc_jax.models.compressors.base_config import Sizes


def build(settings: AveragePoolConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    return AveragePool(settings.sides(sizes.grid), dtype, name=name)


class AveragePool(nn.Module):
    """Means over the squares of the output grid; it has no parameters."""

    sides: tuple[int, ...]
    """Sides of the output grid, one for each V."""
    dtype: DTypeLike = jnp.float32

    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """[P, V, D] of X_s [P, N, D], one V behind the other; X_m and the query are not read."""
        del query
        image_grid(features.single)
        made = [regions(features.single, side).mean(axis=2, dtype=jnp.float32) for side in self.sides]
        return jnp.concatenate(made, axis=1).astype(self.dtype)
