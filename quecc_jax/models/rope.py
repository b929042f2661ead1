"""How a decoder knows positions: rotary embeddings (and their scaled variants) or ALiBi."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from quecc_jax.config import DecoderConfig, RopeScaling
from quecc_jax.models.arrays import Array

Angles = tuple[Float[Array, "B S pairs"], Float[Array, "B S pairs"]]
"""Cosines and sines, each float32 [B, S, pairs]."""


def rotary_frequencies(config: DecoderConfig, length: int) -> np.ndarray:
    """Angle per position of every rotated pair of channels, float32 [rotated_dim / 2].

    Args:
      length: positions of the row, padding included, or of the cache. `longrope` models have one set
        of frequencies for rows of up to `original_length` positions and another for longer ones. The
        choice is a static one: it cannot change while a cache is being filled, and does not depend
        on what else is in the batch. (Hugging Face decides by the largest position of each forward
        pass, and drops the cache when an answer grows past `original_length`.)
    """
    scaling, one = config.rope_scaling, np.float32(1.0)
    # float32 step by step, as the published models were trained: far positions multiply the rounding.
    exponent = np.arange(0, config.rotated_dim, 2).astype(np.float32) / np.float32(config.rotated_dim)
    period = np.float32(config.rope_theta) ** exponent
    if scaling.kind == "longrope":
        factors = scaling.long_factors if length > scaling.original_length else scaling.short_factors
        return one / (np.asarray(factors, np.float32) * period)
    frequency = one / period
    if scaling.kind == "linear":
        return frequency / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        turns = scaling.original_length * frequency / np.float32(2 * math.pi)
        kept = (turns - scaling.slow_turns) / (scaling.fast_turns - scaling.slow_turns)
        kept = np.clip(kept, 0.0, 1.0).astype(np.float32)
        return frequency * kept + frequency / np.float32(scaling.factor) * (one - kept)
    return frequency


def rotary_angles(positions: Int[Array, "B S"], config: DecoderConfig, length: int) -> Angles:
    """Cosines and sines for int32 positions [B, S] in rows or a cache of `length` positions."""
    angle = positions.astype(jnp.float32)[..., None] * rotary_frequencies(config, length)
    factor = config.rope_scaling.attention_factor if config.rope_scaling.kind == "longrope" else 1.0
    return jnp.cos(angle) * factor, jnp.sin(angle) * factor


def layer_angles(positions: Int[Array, "B S"], config: DecoderConfig, length: int) -> tuple[Angles, ...]:
    """The different angles that a decoder's layers have, by the number in `angle_numbers`; none with ALiBi.

    Args:
      positions: int32 [B, S].
      config: the decoder.
      length: as for `rotary_frequencies`.
    """
    if config.positions != "rotary":
        return ()
    plain = rotary_angles(positions, config, length)
    made = {"plain": plain}
    if config.local_rope_theta:
        unscaled = dataclasses.replace(config, rope_theta=config.local_rope_theta, rope_scaling=RopeScaling())
        made["local"] = rotary_angles(positions, unscaled, length)
    made["none"] = jnp.ones_like(plain[0]), jnp.zeros_like(plain[1])
    return tuple(made[name] for name in _rotations(config))


def angle_numbers(config: DecoderConfig) -> tuple[int, ...]:
    """Which of `layer_angles` each layer has."""
    return tuple(map(_rotations(config).index, config.layer_rotations))


def _rotations(config: DecoderConfig) -> list[str]:
    return sorted(set(config.layer_rotations))


def rotate(x: Float[Array, "B S H head_dim"], angles: Angles) -> Float[Array, "B S H head_dim"]:
    """Turns the leading channels of x [B, S, H, head_dim] in float32; keeps x's type.

    With P pairs of angles, channel i is paired with channel i + P, and channels from 2 P on are kept.
    """
    cos, sin = (a[:, :, None, :] for a in angles)
    pairs = cos.shape[-1]
    first, second, kept = jnp.split(x.astype(jnp.float32), (pairs, 2 * pairs), axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin]
    # Whole heads, the common case, are put together from two parts.
    parts += [kept] if kept.shape[-1] else []
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def alibi_slopes(heads: int, bias_max: int) -> Float[Array, " H"]:
    """What one position of distance takes off each head's logits, float32 [H].

    MPT's rule: with n the next power of two, the slopes 2^(-bias_max i / n) for i = 1 .. n; if n is
    not `heads`, the even ones of them come first, then the odd ones, cut to the number of heads.
    """
    n = 1 << (heads - 1).bit_length()
    slopes = 2.0 ** (-bias_max * np.arange(1, n + 1) / n)
    if n != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return jnp.asarray(slopes, jnp.float32)
