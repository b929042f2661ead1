"""Pre-fusion: an instruction that has read the image before the decoder reads it (arXiv 2501.03895)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.models.arrays import Array
from quecc_jax.models.attention import causal
from quecc_jax.models.compressors.base import Features, finish, prepare
from quecc_jax.models.compressors.build import make_compressor
from quecc_jax.models.decoder import DecoderLayer, LayerKind, scanned
from quecc_jax.models.layers import recomputed
from quecc_jax.models.rope import alibi_slopes, layer_angles

MULTIPLE = 16
"""Rows of the pre-fusion are padded to a multiple of it, which kernels and split sequences want."""


class FusingCompressor(nn.Module):
    """A compressor and the pre-fusion that reads its memory; their parameters stand side by side, the
    pre-fusion's under `fusion`."""

    config: ModelConfig
    dtype: DTypeLike

    def setup(self) -> None:
        self.compressor: Any = make_compressor(self.config, self.dtype)
        nn.share_scope(self, self.compressor)
        self.fusion = Fusion(self.config, self.dtype)

    def __call__(
        self, features: Features, query: Float[Array, "P 1 text_width"]
    ) -> Float[Array, "P V_and_memory D"]:
        """The compressor's [P, V + R, D]."""
        made: jax.Array = self.compressor(features, query)
        return made

    def prepare(self, features: Features) -> PyTree:
        """The compressor's part of the image."""
        return prepare(self.compressor, features)

    def finish(
        self, prepared: PyTree, query: Float[Array, "P 1 text_width"]
    ) -> Float[Array, "P V_and_memory D"]:
        """The compressor's part of the question."""
        return finish(self.compressor, prepared, query)

    def fuse(
        self,
        text: Float[Array, "B S M"],
        memory: Float[Array, "B I R M"],
        tokens: Float[Array, "B I V M"],
        batch: Batch,
    ) -> tuple[Float[Array, "B S M"], Float[Array, "B I V M"]]:
        """`Fusion` of a batch."""
        return self.fusion(text, memory, tokens, batch)


class Fusion(nn.Module):
    """The pre-fusion: decoder layers of its own over [memory, compressed tokens, instruction]. The memory is
    all patches in LLaVA-Mini and a few region tokens in quecc_plus.

    Text takes part where it carries no label (answers keep their embeddings, and the decoder has to find
    them itself) and belongs to a conversation with an image; there, what comes out replaces its embedding.
    A conversation's images stand before its text whatever its slots say, memory of all of them, then
    tokens of all of them, at positions counted from 0, and attention is causal among what takes part.
    Compressed tokens enter the decoder as the projector made them, or, of a compressor that `fuses_tokens`, as
    these layers leave them; text of id 0 then takes no part either, as the original takes it for padding.

    The layers begin as the identity, so that a trained decoder at first reads the embeddings it knows.
    """

    config: ModelConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        text: Float[Array, "B S M"],
        memory: Float[Array, "B I R M"],
        tokens: Float[Array, "B I V M"],
        batch: Batch,
    ) -> tuple[Float[Array, "B S M"], Float[Array, "B I V M"]]:
        """Text embeddings [B, S, M], those of instructions replaced, and visual tokens [B, I, V, M].

        Args:
          text: embeddings [B, S, M] of the batch's tokens.
          memory: projected [B, I, R, M].
          tokens: projected visual tokens [B, I, V, M].
        """
        c, layers = self.config, self.config.fusion_layers
        (b, s, width), (i, r), v = text.shape, memory.shape[1:3], tokens.shape[2]
        owner = jnp.where(batch.slots >= 0, batch.slots // v, -1)
        # An image is of the conversation that has its slots; an absent one of none.
        mine = owner[..., None] == jnp.arange(i)
        images = jnp.max(jnp.where(mine, batch.segments[..., None], 0), axis=1)
        shown = jnp.any(batch.segments[..., None] == images[:, None], axis=-1)
        takes_part = shown & (batch.segments > 0) & (batch.slots < 0) & (batch.labels == IGNORE)
        if c.compressor.fuses_tokens:
            takes_part &= batch.tokens > 0
        segments = jnp.concatenate(
            [
                jnp.repeat(images, r, axis=1),
                jnp.repeat(images, v, axis=1),
                jnp.where(takes_part, batch.segments, 0),
            ],
            axis=1,
        )
        x = jnp.concatenate(
            [part.reshape(b, -1, width).astype(self.dtype) for part in (memory, tokens, text)], axis=1
        )
        length = x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, -length % MULTIPLE), (0, 0)))
        x = nn.with_logical_constraint(x, ("batch", "sequence", None))
        segments = jnp.pad(segments, ((0, 0), (0, -length % MULTIPLE)))
        index = jnp.arange(x.shape[1])
        before = (segments[:, :, None] == segments[:, None]) & (index[:, None] > index)
        positions = jnp.sum(before, axis=-1, dtype=jnp.int32)
        angles = layer_angles(positions, layers, x.shape[1])
        slopes = alibi_slopes(layers.heads, layers.alibi_bias_max) if layers.positions == "alibi" else None
        mask = causal(segments, positions)._replace(slopes=slopes)
        stack = scanned(recomputed(DecoderLayer, c.remat), layers.depth)
        run = stack(
            layers, self.dtype, c.attention_kernel, jnp.dtype(c.grad_reduce_dtype), added=0.0, name="layers"
        )
        x, _ = run(x, None, LayerKind(), angles, mask, None)
        text = jnp.where(takes_part[..., None], x[:, length - s : length].astype(text.dtype), text)
        if c.compressor.fuses_tokens:
            tokens = x[:, i * r : i * (r + v)].reshape(tokens.shape).astype(tokens.dtype)
        return text, tokens
