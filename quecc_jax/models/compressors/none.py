"""No compression: LLaVA-1.5's visual tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.models.compressors.base import Cost, Features


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model."""
    del config
    return Uncompressed(dtype, name=name)


def cost(config: ModelConfig) -> Cost:
    """Nothing: the projector, which acts on the tower's states then, is counted by itself."""
    del config
    return Cost()


class Uncompressed(nn.Module):
    """Passes the select layer's features on; it has no parameters."""

    dtype: Any = jnp.float32

    def __call__(self, features: Features, query: jax.Array, batch: Batch | None = None) -> jax.Array:
        """X_s [P, n, D] as it is; X_m and the query are not read."""
        del query, batch
        return features.single.astype(self.dtype)
