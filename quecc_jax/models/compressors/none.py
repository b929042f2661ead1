"""No compression: LLaVA-1.5's visual tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Uncompressed(nn.Module):
    """Passes the select layer's features on; it has no parameters."""

    dtype: Any = jnp.float32

    def __call__(self, single: jax.Array, multi: jax.Array, query: jax.Array) -> jax.Array:
        """X_s [B, n, D] as it is; X_m and the query are not read."""
        del multi, query
        return single.astype(self.dtype)
