"""CLIP's text transformer: a question's token ids to one vector in the space of the pictures' captions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.models.attention import causal
from quecc_jax.models.clip import ClipLayer
from quecc_jax.models.layers import LayerNorm, by_rows, linear, logical
from quecc_jax.query_config import ClipTextConfig


class ClipText(nn.Module):
    """Causal layers, a final norm, the state at the end token, and CLIP's projection where there is one."""

    config: ClipTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array, last: jax.Array) -> jax.Array:
        """Features [B, H] of token ids [B, Q], the end token of each at `last` [B].

        Q may exceed the positions that there are, if all places beyond are padding.
        """
        c = self.config
        tokens = tokens[:, : c.positions]
        normal = nn.initializers.normal(0.02)
        table = self.param("token_embedding", logical(normal, "vocab", "embed"), (c.vocab_size, c.width))
        places = self.param("position_embedding", logical(normal, None, "embed"), (c.positions, c.width))
        table = nn.with_logical_constraint(table.astype(self.dtype), ("vocab", None))
        index = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = by_rows(jnp.take(table, tokens, axis=0) + places[: tokens.shape[1]].astype(self.dtype))
        # Nothing stands behind the end token that it could see, so padding needs no mask of its own.
        stack = nn.scan(
            ClipLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = stack(c, self.dtype, name="layers")(x, causal(jnp.ones_like(tokens), index))
        x = jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]
        x = LayerNorm(c.norm_eps, name="final_norm")(x)
        if not c.projection:
            return x
        projection = linear(c.projection, ("embed", None), bias=False, dtype=self.dtype, name="projection")
        return projection(x)
