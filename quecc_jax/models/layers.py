"""Pieces every model here shares: linear layers, norms, rotary positions, masks, attention.

Logical axis names used by parameters (`sharding.py` maps them to mesh axes): `embed`, `mlp`,
`heads`, `kv_heads`, `head_dim`, `vocab`, `layers`, and None for axes that are never split.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Axes = tuple[str | None, ...]
Initializer = Callable[..., Any]
"""(key, shape, dtype) -> array, or the array boxed with its axis names."""


def logical(init: Initializer, *axes: str | None) -> Initializer:
    """Attaches logical axis names to what an initializer returns."""
    return nn.with_logical_partitioning(init, axes)


def matrix_init(inputs: int, variance: float = 1.0) -> Initializer:
    """Normal initialisation of a kernel whose first `inputs` axes are the input's: outputs have
    `variance` times the inputs' variance."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        draw = nn.initializers.variance_scaling(variance, "fan_in", "truncated_normal")
        flat = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
        return draw(key, flat, dtype).reshape(shape)

    return init


class Linear(nn.Module):
    """Linear map of the last `inputs` axes to `features`, e.g. [D] to [H, head_dim] and back."""

    features: tuple[int, ...]
    axes: Axes
    """Logical names of the kernel's axes, input axes first; the bias takes the output's."""
    inputs: int = 1
    bias: bool = True
    dtype: Any = jnp.float32
    variance: float = 1.0
    """Of the outputs relative to the inputs, at initialisation."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        contracted = x.shape[x.ndim - self.inputs :]
        init = logical(matrix_init(self.inputs, self.variance), *self.axes)
        kernel = self.param("kernel", init, (*contracted, *self.features))
        y = jax.lax.dot_general(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            ((tuple(range(x.ndim - self.inputs, x.ndim)), tuple(range(self.inputs))), ((), ())),
        )
        if self.bias:
            zeros = logical(nn.initializers.zeros, *self.axes[self.inputs :])
            y = y + self.param("bias", zeros, self.features).astype(self.dtype)
        return y


def linear(features: int | tuple[int, ...], axes: Axes, **rest: Any) -> Linear:
    """A `Linear` with one or several output axes."""
    return Linear((features,) if isinstance(features, int) else features, axes, **rest)


class LayerNorm(nn.Module):
    """LayerNorm with scale and bias over the last axis, computed in float32, returned in x's type."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", logical(nn.initializers.ones, None), (x.shape[-1],))
        bias = self.param("bias", logical(nn.initializers.zeros, None), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with scale over the last axis, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", logical(nn.initializers.ones, None), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, S, head_dim / 2] of the rotary embedding, float32.

    Frequencies are theta^(-2i / head_dim); positions is int32 [B, S].
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = positions.astype(jnp.float32)[..., None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies half-split rotary positions to x [B, S, H, head_dim] in float32; keeps x's type."""
    cos, sin = (a[:, :, None, :] for a in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


class MaskSpec(NamedTuple):
    """What attention may see: keys of the query's own segment that are not later in the row.

    All int32. Kept as vectors so that kernels which build masks on the fly can take them; only
    `dense_mask` makes the S x T matrix.

    Example, two conversations packed into a row of five with one padding position:
      segments 1 1 2 2 0, index 0 1 2 3 4
      position 1 sees 0 and 1; position 3 sees 2 and 3; padding sees padding, and is never used.
    """

    q_segments: jax.Array
    """[B, S]"""
    k_segments: jax.Array
    """[B, T]"""
    q_index: jax.Array
    """[S] place of each query among the keys."""
    k_index: jax.Array
    """[T]"""


def causal(segments: jax.Array) -> MaskSpec:
    """Causal attention within segments [B, S] of one pass without a cache."""
    index = jnp.arange(segments.shape[1])
    return MaskSpec(segments, segments, index, index)


def dense_mask(spec: MaskSpec) -> jax.Array:
    """bool [B, 1, S, T], True where attention is allowed."""
    same = spec.q_segments[:, :, None] == spec.k_segments[:, None, :]
    past = spec.k_index[None, :] <= spec.q_index[:, None]
    return (same & past)[:, None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskSpec | None) -> jax.Array:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
      q: [B, S, H, head_dim].
      k, v: [B, T, K, head_dim] with K dividing H.
      mask: None lets every query see every key.

    Returns:
      [B, S, H, head_dim] in q's type.
    """
    return jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else dense_mask(mask))
