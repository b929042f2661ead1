"""LLaVA-Mini (arXiv 2501.03895): a resampler to few tokens, and text that has read the whole picture."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.models.attention import causal
from quecc_jax.models.compressors.base import (
    EPS,
    NORM,
    Cost,
    Features,
    RegionAttention,
    attention_products,
    picture_grid,
)
from quecc_jax.models.compressors.positions import bicubic, sine_cosine
from quecc_jax.models.decoder import recomputed, scanned
from quecc_jax.models.layers import LayerNorm, with_axes
from quecc_jax.models.rope import alibi_slopes, rotary_angles

MULTIPLE = 16
"""Rows of the pre-fusion are padded to a multiple of it, which kernels and split sequences want."""


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model."""
    return LlavaMini(config, config.num_output_tokens, dtype, name=name)


def cost(config: ModelConfig) -> Cost:
    """The resampler's queries and attention. The pre-fusion's weights are among `params`; its FLOPs, which
    depend on the text, are `flops.fusion_flops`."""
    from quecc_jax.flops import decoder_params

    d, v, c = config.vision.feature_width, config.num_output_tokens, config.compressor
    n = config.vision.patches
    fusion = decoder_params(config.fusion_layers) if c.fuses else 0
    # Norm and positions are added to what few queries multiply.
    multiplied = attention_products(d, n, v, c.heads)
    return Cost(v * d + 4 * d * d + fusion, 2.0 * multiplied + (NORM + 1) * n * d)


class LlavaMini(nn.Module):
    """Resampler, and with `compressor.fusion_layers` the pre-fusion of text and patches.

    tokens = Attention(LN(q) + pos, LN(X_s) + resize(pos), LN(X_s)) for a C x C grid of learned queries q,
    V = C^2, with 2-D sine-cosine positions pos, which the keys have resized to the patch grid by bicubic
    interpolation, as in MQT: all the same at C = 1, where only the patches' own states say where they are.
    """

    config: ModelConfig
    tokens: int
    """V, a square number."""
    dtype: Any = jnp.float32

    def setup(self) -> None:
        c = self.config
        init = with_axes(nn.initializers.normal(0.02), None, "embed")
        self.queries = self.param("queries", init, (self.tokens, c.vision.feature_width))
        self.q_norm, self.kv_norm = LayerNorm(EPS), LayerNorm(EPS)
        self.attention = RegionAttention(c.compressor.heads, self.dtype)
        if c.compressor.fuses:
            self.fusion = Fusion(c, self.dtype)

    def __call__(self, features: Features, query: jax.Array, batch: Batch | None = None) -> jax.Array:
        """Compressed tokens [P, V, D] of X_s [P, n, D], and X_s itself behind them where there is a
        pre-fusion; X_m and the question's feature are not read.

        Raises:
          ValueError: n is not a square, D is not a multiple of four, or the heads do not divide D.
        """
        del query, batch
        x = self.kv_norm(features.single.astype(self.dtype))
        grid, width = picture_grid(x), x.shape[-1]
        positions = sine_cosine(round(self.tokens**0.5), width)
        q = (self.q_norm(self.queries) + positions).astype(self.dtype)
        tokens = self.attention(q[None], x + jnp.asarray(bicubic(positions, grid), self.dtype), x)
        if not self.config.compressor.fuses:
            return tokens
        return jnp.concatenate([tokens, features.single.astype(self.dtype)], axis=1)

    def fuse(self, text: jax.Array, memory: jax.Array, tokens: jax.Array, batch: Batch) -> jax.Array:
        """`Fusion` of a batch."""
        return self.fusion(text, memory, tokens, batch)


class Fusion(nn.Module):
    """The pre-fusion: decoder layers of its own over [memory, compressed tokens, instruction]. The memory is
    all patches in LLaVA-Mini and a few region tokens in quecc_plus.

    Text takes part where it carries no label (answers keep their embeddings, and the decoder has to find
    them itself) and belongs to a conversation with a picture; there, what comes out replaces its embedding.
    A conversation's pictures stand before its text whatever its slots say, memory of all of them, then
    tokens of all of them, at positions counted from 0, and attention is causal among what takes part.
    Compressed tokens enter the decoder as the projector made them.

    The layers begin as the identity, so that a trained decoder at first reads the embeddings it knows.
    """

    config: ModelConfig
    dtype: Any

    @nn.compact
    def __call__(self, text: jax.Array, memory: jax.Array, tokens: jax.Array, batch: Batch) -> jax.Array:
        """Text embeddings [B, S, M], those of instructions replaced.

        Args:
          text: embeddings [B, S, M] of the batch's tokens.
          memory: projected [B, I, R, M].
          tokens: projected visual tokens [B, I, V, M].
        """
        c, layers = self.config, self.config.fusion_layers
        (b, s, width), (i, r), v = text.shape, memory.shape[1:3], tokens.shape[2]
        owner = jnp.where(batch.slots >= 0, batch.slots // v, -1)
        # A picture is of the conversation that has its slots; an absent one of none.
        mine = owner[..., None] == jnp.arange(i)
        pictures = jnp.max(jnp.where(mine, batch.segments[..., None], 0), axis=1)
        shown = jnp.any(batch.segments[..., None] == pictures[:, None], axis=-1)
        takes_part = shown & (batch.segments > 0) & (batch.slots < 0) & (batch.labels == IGNORE)
        segments = jnp.concatenate(
            [
                jnp.repeat(pictures, r, axis=1),
                jnp.repeat(pictures, v, axis=1),
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
        angles = rotary_angles(positions, layers, x.shape[1]) if layers.positions == "rotary" else None
        slopes = alibi_slopes(layers.heads, layers.alibi_bias_max) if layers.positions == "alibi" else None
        mask = causal(segments, positions)._replace(slopes=slopes)
        stack = scanned(recomputed(c.remat), layers.depth)
        run = stack(
            layers, self.dtype, c.attention_kernel, jnp.dtype(c.grad_reduce_dtype), added=0.0, name="layers"
        )
        x, _ = run(x, None, None, angles, mask, None)
        return jnp.where(takes_part[..., None], x[:, length - s : length].astype(text.dtype), text)
