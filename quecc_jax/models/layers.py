"""Pieces every model here shares: linear layers, norms, masks, attention.

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


def by_rows(x: jax.Array) -> jax.Array:
    """x [B, ...] with its rows, and nothing else, split over the mesh.

    Left alone, the partitioner may split activations like the parameters they meet, and exchange them
    at every layer.
    """
    return nn.with_logical_constraint(x, ("batch", *(x.ndim - 1) * (None,)))


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
    """LayerNorm over the last axis, computed in float32, returned in x's type."""

    eps: float
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", logical(nn.initializers.ones, None), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps) * scale
        if self.bias:
            y = y + self.param("bias", logical(nn.initializers.zeros, None), (x.shape[-1],))
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with scale over the last axis, computed in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", logical(nn.initializers.ones, None), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * scale).astype(x.dtype)


class MaskSpec(NamedTuple):
    """What attention may see: keys of the query's own segment that are not later in the row.

    A window limits how far back, and slopes make distance cost; both count in positions, so holes
    that padding leaves in a cache have no width. Within a segment positions rise by one per token.
    Kept as vectors so that kernels which build masks on the fly can take them; only `dense_mask`
    and `dense_bias` make S x T matrices.

    Example, two conversations packed into a row of six with one padding place:
      segments 1 1 1 2 2 0, index 0 1 2 3 4 5, positions 0 1 2 0 1 0
      index 2 sees 0, 1 and 2, within a window of 2 only 1 and 2; index 4 sees 3 and 4; padding sees
      padding, and is never used.
    """

    q_segments: jax.Array
    """int32 [B, S]"""
    k_segments: jax.Array
    """int32 [B, T]"""
    q_index: jax.Array
    """int32 [S], place of each query among the keys."""
    k_index: jax.Array
    """int32 [T]"""
    q_positions: jax.Array
    """int32 [B, S]"""
    k_positions: jax.Array
    """int32 [B, T]"""
    window: jax.Array | None = None
    """int32 [], tokens that a query sees, itself included."""
    slopes: jax.Array | None = None
    """float32 [H], taken off a head's logits per position of distance (ALiBi)."""


def causal(segments: jax.Array, positions: jax.Array) -> MaskSpec:
    """Causal attention within segments, both int32 [B, S], of one pass without a cache."""
    index = jnp.arange(segments.shape[1])
    return MaskSpec(segments, segments, index, index, positions, positions)


def dense_mask(spec: MaskSpec) -> jax.Array:
    """bool [B, 1, S, T], True where attention is allowed."""
    same = spec.q_segments[:, :, None] == spec.k_segments[:, None, :]
    seen = same & (spec.k_index[None, :] <= spec.q_index[:, None])
    if spec.window is not None:
        seen &= _distance(spec) < spec.window
    return seen[:, None]


def dense_bias(spec: MaskSpec) -> jax.Array | None:
    """float32 [B, H, S, T] to be added to the logits; None without slopes."""
    if spec.slopes is None:
        return None
    return -spec.slopes[:, None, None] * _distance(spec)[:, None].astype(jnp.float32)


def _distance(spec: MaskSpec) -> jax.Array:
    return spec.q_positions[:, :, None] - spec.k_positions[:, None, :]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskSpec | None) -> jax.Array:
    """Scaled dot-product attention with grouped key/value heads; softmax in float32.

    Args:
      q: [B, S, H, head_dim].
      k, v: [B, T, K, head_dim] with K dividing H.
      mask: None lets every query see every key.

    Returns:
      [B, S, H, head_dim] in q's type.
    """
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, bias=dense_bias(mask), mask=dense_mask(mask))
