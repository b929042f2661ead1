"""CLIP's text transformer: questions' token ids to vectors in the space of the images' captions."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from quecc_jax.config.query import ClipTextConfig
from quecc_jax.models.arrays import Array
from quecc_jax.models.attention import causal
from quecc_jax.models.layers import LayerNorm, constrain_batch, linear, with_axes
from quecc_jax.models.towers.vit import TowerLayer


class ClipText(nn.Module):
    """Causal layers, a final norm, the state at the end token, and CLIP's projection where there is one."""

    config: ClipTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B Q"],
        positions: Int[Array, "B Q"],
        segments: Int[Array, "B Q"],
        last: Int[Array, "B I"],
    ) -> Float[Array, "B I width"]:
        """Features [B, I, H] of the texts in token ids [B, Q], each a segment, that end at `last` [B, I].

        Positions [B, Q] count within a text and are less than those that there are, but in padding.
        """
        c = self.config
        normal = nn.initializers.normal(0.02)
        table = self.param("token_embedding", with_axes(normal, "vocab", "embed"), (c.vocab_size, c.width))
        table_of_positions = self.param(
            "position_embedding", with_axes(normal, None, "embed"), (c.positions, c.width)
        )
        table = nn.with_logical_constraint(table.astype(self.dtype), ("vocab", None))
        position = jnp.take(
            table_of_positions.astype(self.dtype), jnp.minimum(positions, c.positions - 1), axis=0
        )
        x = constrain_batch(jnp.take(table, tokens, axis=0) + position)
        stack = nn.scan(
            TowerLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = stack(c, self.dtype, name="layers")(x, causal(segments, positions))
        x = jnp.take_along_axis(x, last[..., None], axis=1)
        x = LayerNorm(c.norm_eps, name="final_norm")(x)
        if not c.projection:
            return x
        projection = linear(c.projection, ("embed", None), bias=False, dtype=self.dtype, name="projection")
        return projection(x)
