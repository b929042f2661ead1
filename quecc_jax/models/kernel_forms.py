"""The matrices of a decoder's stacked layers, brought from one stored form to another, one at a time."""

import functools
import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import PyTree

from quecc_jax.config import DecoderConfig
from quecc_jax.config.shapes import decoder_matrices
from quecc_jax.config.weights import Form, scale_shape
from quecc_jax.errors import UserError
from quecc_jax.models.quantized import CODES, SCALE, dequantize, form_of, quantize

Decoder = dict[str, PyTree]
"""Parameters of a decoder, or what stands for them."""


def kernels(decoder: Decoder, config: DecoderConfig) -> Iterator[tuple[str, PyTree, int]]:
    """Name, matrix [layers, *in, *out] or its stored form, and number of input axes, of all that may be stored.

    What is missing, or another model's, is left for `train.checkpoint.check_shapes` to say.
    """
    for name, (ins, _) in decoder_matrices(config).items():
        kernel = decoder.get("layers", {}).get(name, {}).get("kernel")
        if kernel is not None:
            # The codes, of the matrix' shape, come before the scale.
            shape = jax.tree.leaves(kernel)[0].shape
            yield name, kernel, next((n for n in (1, 2) if math.prod(shape[1 : 1 + n]) == ins), 1)


def with_kernel(decoder: Decoder, name: str, kernel: PyTree) -> Decoder:
    """The decoder with another matrix, or stored form of one."""
    layers = decoder["layers"]
    return {**decoder, "layers": {**layers, name: {**layers.get(name, {}), "kernel": kernel}}}


def without_kernels(decoder: Decoder, names: Collection[str]) -> Decoder:
    """The decoder without some of its matrices."""
    layers = {
        name: {part: leaf for part, leaf in layer.items() if part != "kernel" or name not in names}
        for name, layer in decoder["layers"].items()
    }
    return {**decoder, "layers": {name: layer for name, layer in layers.items() if layer}}


def in_form(decoder: Decoder, config: DecoderConfig, form: Form | None) -> Decoder:
    """The decoder with its matrices in a form, or plain: arrays, within `jax.jit` too, or stand-ins with shardings.

    Raises:
      UserError: as `converted`.
    """
    for name, kernel, inputs in list(kernels(decoder, config)):
        if form_of(kernel) != form:
            decoder = with_kernel(decoder, name, _in_form(kernel, form, inputs))
    return decoder


def _in_form(kernel: PyTree, form: Form | None, inputs: int) -> PyTree:
    if isinstance(jax.tree.leaves(kernel)[0], jax.ShapeDtypeStruct):
        return stand_in(kernel, form, inputs)
    return _layer_by_layer(kernel, form, inputs)


def like(decoder: Decoder, other: Decoder, config: DecoderConfig) -> Decoder:
    """Stand-ins of a decoder, with its matrices in the forms that another's have."""
    forms = {name: form_of(kernel) for name, kernel, _ in kernels(other, config)}
    for name, kernel, inputs in list(kernels(decoder, config)):
        if name in forms and form_of(kernel) != forms[name]:
            decoder = with_kernel(decoder, name, stand_in(kernel, forms[name], inputs))
    return decoder


class Change(NamedTuple):
    """A matrix that is to have another form."""

    name: str
    old: PyTree
    """Stand-ins of what it is."""
    new: PyTree
    """Stand-ins, with shardings, of what it is to be."""
    inputs: int
    """Its input axes."""


def different(decoder: Decoder, wanted: Decoder, config: DecoderConfig) -> Iterator[Change]:
    """The matrices that are wanted in other forms."""
    new = {name: kernel for name, kernel, _ in kernels(wanted, config)}
    for name, kernel, inputs in kernels(decoder, config):
        if form_of(kernel) != form_of(new[name]):
            yield Change(name, kernel, new[name], inputs)


def stand_in(kernel: PyTree, form: Form | None, inputs: int) -> PyTree:
    """Shapes, types and shardings of a matrix [layers, *in, *out] in another form; float32 where that is plain.

    Codes lie like the matrix, scales too but for an axis of which not every device has whole blocks. A box of logical
    axes gives boxes.
    """
    if isinstance(kernel, nn.LogicallyPartitioned):
        parts = stand_in(kernel.value, form, inputs)

        def boxed(leaf: jax.ShapeDtypeStruct) -> PyTree:
            names = (None if size == 1 else name for name, size in zip(kernel.names, leaf.shape, strict=True))
            return nn.LogicallyPartitioned(leaf, tuple(names))

        return jax.tree.map(boxed, parts)
    old = form_of(kernel)
    whole = kernel[old] if old else kernel
    sharding = getattr(whole, "sharding", None)
    if form is None:
        return jax.ShapeDtypeStruct(whole.shape, jnp.float32, sharding=sharding)
    shape = (whole.shape[0], *scale_shape(whole.shape[1:], form, inputs))
    return {
        form: jax.ShapeDtypeStruct(whole.shape, CODES[form], sharding=sharding),
        SCALE: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=_fitting(sharding, shape)),
    }


def _fitting(sharding: Any, shape: tuple[int, ...]) -> Any:
    """The sharding without the splits that this shape's axes do not divide over."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = []
    for size, target in zip(shape, (*sharding.spec, *len(shape) * (None,)), strict=False):
        axes = (target,) if isinstance(target, str) else tuple(target or ())
        spec.append(None if size % math.prod(sharding.mesh.shape[axis] for axis in axes) else target)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def converted(kernel: PyTree, change: Change, where: str) -> PyTree:
    """A matrix [layers, *in, *out] of a run in the form, type and sharding that it is to have.

    Args:
      where: what it is, for messages.

    Raises:
      UserError: it has numbers that are not finite, or the device has no integers of 4 bits.
    """
    wanted, form = change.new, form_of(change.new)
    if form is not None and CODES[form] == jnp.int4:
        check_four_bits(form)
    shardings = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), wanted)
    dtype = jnp.float32 if form else wanted.dtype
    convert = functools.partial(_layer_by_layer, form=form, inputs=change.inputs, dtype=dtype)
    made: PyTree = jax.jit(convert, out_shardings=shardings)(kernel)
    if form is not None and not bool(jnp.all(jnp.isfinite(made[SCALE]))):
        raise UserError(
            f"{where} has numbers that are not finite, which {form} cannot hold; repair it, or take bfloat16"
        )
    return made


def as_wanted(decoder: Decoder, wanted: Decoder, config: DecoderConfig, run: str) -> Decoder:
    """A run's decoder with its matrices in the forms of stand-ins.

    Raises:
      UserError: as `converted`.
    """
    for change in list(different(decoder, wanted, config)):
        where = f"decoder/layers/{change.name}/kernel of {run}"
        decoder = with_kernel(decoder, change.name, converted(change.old, change, where))
    return decoder


def check_four_bits(form: Form) -> None:
    """Raises UserError where the device has no integers of 4 bits."""
    try:
        jax.block_until_ready(jnp.ones(2, jnp.int4).astype(jnp.float32))
    except Exception as error:  # each backend fails in its own way
        raise UserError(
            f"{jax.default_backend()} has no integers of 4 bits, which {form} needs "
            f"({str(error).strip().partition(chr(10))[0][:100]}); take int8"
        ) from None


def _layer_by_layer(kernel: PyTree, form: Form | None, inputs: int, dtype: DTypeLike = jnp.float32) -> PyTree:
    """A layer at a time, so that no stack of float32 numbers stands beside a matrix and its form."""

    def one(layer: PyTree) -> PyTree:
        plain = dequantize(layer) if form_of(layer) else layer
        return quantize(plain, form, inputs) if form else plain.astype(dtype)

    return jax.lax.map(one, kernel)
