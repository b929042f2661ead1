"""Average pooling: each token is the mean of its square of patches."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.config.shapes import output_sides
from quecc_jax.data.batch import Batch
from quecc_jax.models.compressors.base import Cost, Features, picture_grid, regions


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model."""
    return AveragePool(output_sides(config), dtype, name=name)


def cost(config: ModelConfig) -> Cost:
    """One addition per value and V."""
    return Cost(
        0, float(len(config.output_token_groups) * config.vision.patches * config.vision.feature_width)
    )


class AveragePool(nn.Module):
    """Means over the squares of the output grid; it has no parameters."""

    sides: tuple[int, ...]
    """Sides of the output grid, one for each V."""
    dtype: Any = jnp.float32

    def __call__(self, features: Features, query: jax.Array, batch: Batch | None = None) -> jax.Array:
        """[P, V, D] of X_s [P, n, D], one V behind the other; X_m and the query are not read."""
        del query, batch
        picture_grid(features.single)
        made = [regions(features.single, side).mean(axis=2, dtype=jnp.float32) for side in self.sides]
        return jnp.concatenate(made, axis=1).astype(self.dtype)
