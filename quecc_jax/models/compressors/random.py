"""A random choice of patches: the baseline that published choices often do not beat (UniPruneBench)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import Features, image_grid
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.random_config import RandomConfig


def build(settings: RandomConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    return RandomPatches(settings.kept(sizes.grid), dtype, name=name)


class RandomPatches(nn.Module):
    """Passes some patches on as they are; it has no parameters."""

    kept: tuple[int, ...]
    """Their numbers in raster order."""
    dtype: DTypeLike = jnp.float32

    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """[P, V, D] of X_s [P, N, D]; X_m and the query are not read."""
        del query
        image_grid(features.single)
        return features.single[:, np.array(self.kept)].astype(self.dtype)
