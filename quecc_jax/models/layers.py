"""Pieces every model here shares: linear layers and norms.

Logical axis names used by parameters (`sharding.py` maps them to mesh axes): `embed`, `mlp`,
`heads`, `kv_heads`, `head_dim`, `vocab`, `layers`, and None for axes that are never split.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree, Shaped

from quecc_jax.config import LoraConfig
from quecc_jax.models.arrays import Array
from quecc_jax.models.attention import SAVED
from quecc_jax.models.quantized import dequantize, form_of, read_behind

Axes = tuple[str | None, ...]
Initializer = Callable[..., Any]
"""(key, shape, dtype) -> array, or the array boxed with its axis names."""


def recomputed(layer: Any, remat: str) -> Any:
    """A layer's class as one that recomputes in its backward pass what `ModelConfig.remat` names."""
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    kept = {
        "dots": policies.dots_with_no_batch_dims_saveable,
        "attention": policies.save_only_these_names(SAVED),
    }
    return nn.remat(layer, policy=kept.get(remat), prevent_cse=False)


def with_axes(init: Initializer, *axes: str | None) -> Initializer:
    """Attaches logical axis names to what an initializer returns."""
    return nn.with_logical_partitioning(init, axes)


def constrain_batch(x: Shaped[Array, "B ..."]) -> Shaped[Array, "B ..."]:
    """x [B, ...] with its rows, and nothing else, split over the mesh.

    Left alone, the partitioner may split activations like the parameters they meet, and exchange them
    at every layer.
    """
    return nn.with_logical_constraint(x, ("batch", *(x.ndim - 1) * (None,)))


def matrix_init(inputs: int, variance: float = 1.0) -> Initializer:
    """Normal initialisation of a kernel whose first `inputs` axes are the input's: outputs have
    `variance` times the inputs' variance."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        draw = nn.initializers.variance_scaling(variance, "fan_in", "truncated_normal")
        flat = (math.prod(shape[:inputs]), math.prod(shape[inputs:]))
        return draw(key, flat, dtype).reshape(shape)

    return init


def product(x: Array, kernel: Array, inputs: int) -> jax.Array:
    """x [..., *in] times kernel [*in, *out], contracted over `inputs` axes, in x's type."""
    axes = (tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs)))
    return jax.lax.dot_general(x, kernel.astype(x.dtype), (axes, ((), ())))


def input_gradient(slope: Array, kernel: Array, inputs: int) -> jax.Array:
    """Gradient of `product`'s x, [..., *in], of that of what it returns, [..., *out]."""
    rows = slope.ndim - kernel.ndim + inputs
    axes = (tuple(range(rows, slope.ndim)), tuple(range(inputs, kernel.ndim)))
    return jax.lax.dot_general(slope, kernel.astype(slope.dtype), (axes, ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul_fp32_grad(x: Array, kernel: Array, inputs: int) -> jax.Array:
    """`product` whose gradient of the kernel is float32 from the start.

    Otherwise it has x's type until it leaves the product, and so has its sum over devices.
    """
    return product(x, kernel, inputs)


def _wide_forward(x: Array, kernel: Array, inputs: int) -> tuple[jax.Array, Any]:
    return product(x, kernel, inputs), (x, kernel)


def _wide_backward(inputs: int, saved: Any, slope: Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - inputs))
    to_kernel = jax.lax.dot_general(x, slope, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return input_gradient(slope, kernel, inputs), to_kernel.astype(kernel.dtype)


matmul_fp32_grad.defvjp(_wide_forward, _wide_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def quantized_product(x: Array, stored: PyTree, inputs: int) -> jax.Array:
    """`product` with a matrix in its stored form (`models.quantized`), which has no gradient. The backward pass
    reads the stored form again, so that no whole matrix is kept for it."""
    if jax.sharding.get_abstract_mesh().empty:
        stored = read_behind(stored, jnp.ravel(x)[0])
    return product(x, dequantize(stored, x.dtype), inputs)


def _stored_forward(x: Array, stored: PyTree, inputs: int) -> tuple[jax.Array, PyTree]:
    return quantized_product(x, stored, inputs), stored


def _stored_backward(inputs: int, stored: PyTree, slope: Array) -> tuple[jax.Array, None]:
    return input_gradient(slope, dequantize(stored, slope.dtype), inputs), None


quantized_product.defvjp(_stored_forward, _stored_backward)


class Linear(nn.Module):
    """Linear map of the last `inputs` axes to `features`, e.g. [D] to [H, head_dim] and back, with an adapter
    where `lora` has one for the module's name. The kernel may be given in its stored form, for which there is no
    gradient."""

    features: tuple[int, ...]
    axes: Axes
    """Logical names of the kernel's axes, input axes first; the bias takes the output's."""
    inputs: int = 1
    bias: bool = True
    dtype: DTypeLike = jnp.float32
    variance: float = 1.0
    """Of the outputs relative to the inputs, at initialisation."""
    gradients: DTypeLike = jnp.bfloat16
    """Type in which devices add up their shares of the matrices' gradients, unless `dtype` is wider."""
    lora: LoraConfig = LoraConfig()
    """Adapters, of which this matrix has one if they name it."""

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        contracted = x.shape[x.ndim - self.inputs :]
        wider = jnp.promote_types(self.dtype, self.gradients) != self.dtype
        multiply = matmul_fp32_grad if wider else product
        x = x.astype(self.dtype)
        kernel: Any = self.get_variable("params", "kernel")
        if form_of(kernel):
            y = quantized_product(x, kernel, self.inputs)
        else:
            init = with_axes(matrix_init(self.inputs, self.variance), *self.axes)
            kernel = self.param("kernel", init, (*contracted, *self.features))
            y = multiply(x, kernel, self.inputs)
        if self.bias:
            zeros = with_axes(nn.initializers.zeros, *self.axes[self.inputs :])
            y = y + self.param("bias", zeros, self.features).astype(self.dtype)
        if self.lora.adapts(self.name):
            first, second = self._adapter(contracted)
            x = nn.Dropout(self.lora.dropout, deterministic=not self.has_rng("dropout"))(x)
            y = y + multiply(self.lora.scale * multiply(x, first, self.inputs), second, 1)
        return y

    def _adapter(self, contracted: tuple[int, ...]) -> tuple[Array, Array]:
        """A [*contracted, rank] and B [rank, *features]; B begins as zeros, A as PEFT's in its variance."""
        rank, ins, outs = self.lora.rank, self.axes[: self.inputs], self.axes[self.inputs :]
        start = with_axes(matrix_init(self.inputs, 1 / 3), *ins, None)
        zeros = with_axes(nn.initializers.zeros, None, *outs)
        first = self.param("lora_a", start, (*contracted, rank))
        return first, self.param("lora_b", zeros, (rank, *self.features))


def linear(features: int | tuple[int, ...], axes: Axes, **rest: Any) -> Linear:
    """A `Linear` with one or several output axes."""
    return Linear((features,) if isinstance(features, int) else features, axes, **rest)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, computed in float32, returned in x's type."""

    eps: float
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
        scale = self.param("scale", with_axes(nn.initializers.ones, None), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps) * scale
        if self.bias:
            y = y + self.param("bias", with_axes(nn.initializers.zeros, None), (x.shape[-1],))
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm with scale over the last axes, computed in float32."""

    eps: float
    axes: Axes = (None,)
    """Logical names of the axes that the mean is over and that the scale has, e.g. those of all heads."""
    zero_centred: bool = False
    """The scale is stored less one."""
    start: float = 1.0
    """The scale at initialisation."""

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        count, offset = len(self.axes), float(self.zero_centred)
        start = nn.initializers.constant(self.start - offset)
        scale = self.param("scale", with_axes(start, *self.axes), x.shape[-count:])
        y = x.astype(jnp.float32)
        mean = jnp.mean(y * y, axis=tuple(range(-count, 0)), keepdims=True)
        y = y * jax.lax.rsqrt(mean + self.eps)
        return (y * (scale + offset if offset else scale)).astype(x.dtype)
