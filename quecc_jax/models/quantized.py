"""Matrices in few bits: how they are rounded, stored and read again.

A stored matrix is `{form: codes, "scale": scale}` in the place of its array. Codes are whole numbers of the matrix'
own shape; the float32 scale has as many axes, and each of its numbers belongs to a block of codes:

- `int8`: a block is all inputs of one output, a number is code x scale, codes are -127 .. 127.
- `int4`: a block is BLOCK numbers along the last input axis, codes are -7 .. 7.
- `nf4`: the same blocks, a number is LEVELS[code + 8] x scale, the block's largest absolute value.

A last input axis that BLOCK does not divide has blocks of its largest divisor below that. A block of zeros has a
scale of zero.
"""

import itertools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.config.weights import FORMS, Form, scale_shape
from quecc_jax.models.arrays import Array

Stored = dict[str, Any]
"""{form: codes, "scale": scale}, or anything that stands for these arrays."""
SCALE = "scale"
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Of NormalFloat4: quantiles of a normal distribution (QLoRA, arXiv 2305.14314, appendix E; as in bitsandbytes)."""
LARGEST = {"int8": 127.0, "int4": 7.0, "nf4": 1.0}
"""What a block's largest absolute value becomes."""
CODES: dict[str, DTypeLike] = {"int8": jnp.int8, "int4": jnp.int4, "nf4": jnp.int4}


def form_of(kernel: object) -> Form | None:
    """The form of a stored matrix; None of a plain one."""
    return next((form for form in FORMS if form in kernel), None) if isinstance(kernel, Mapping) else None


def quantize(kernel: Float[Array, "..."], form: Form, inputs: int) -> Stored:
    """The stored form of a matrix [*in, *out]: each number becomes the nearest that its block has.

    Numbers that are not finite give a scale that is not.
    """
    shape = scale_shape(kernel.shape, form, inputs)
    blocks = kernel.astype(jnp.float32).reshape(_blocks(kernel.shape, shape))
    within = tuple(range(1, blocks.ndim, 2))
    scale = jnp.max(jnp.abs(blocks), axis=within, keepdims=True) / LARGEST[form]
    parts = blocks / jnp.where(scale == 0, 1.0, scale)
    if form == "nf4":
        middles = [(a + b) / 2 for a, b in itertools.pairwise(LEVELS)]
        codes = sum(
            ((parts > middle).astype(jnp.int8) for middle in middles), jnp.full(parts.shape, -8, jnp.int8)
        )
    else:
        codes = jnp.round(parts)
    return {form: codes.reshape(kernel.shape).astype(CODES[form]), SCALE: scale.reshape(shape)}


def dequantize(stored: Mapping[str, Any], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The matrix that a stored one stands for."""
    form = cast(Form, form_of(stored))
    codes, scale = jnp.asarray(stored[form]), jnp.asarray(stored[SCALE])
    values = _levels(codes) if form == "nf4" else codes.astype(jnp.float32)
    blocks = values.reshape(_blocks(codes.shape, scale.shape))
    spread = scale.reshape([size for count in scale.shape for size in (count, 1)])
    return (blocks * spread).reshape(codes.shape).astype(dtype)


def read_behind(stored: Mapping[str, Any], value: jax.Array) -> Stored:
    """The same stored matrix, which seems to hang on a floating-point number [].

    Where layers are unrolled, as for answers, XLA would make all matrices whole first, and keep them all; this way it
    makes one when its input is there. An `optimization_barrier` is gone on CPUs before that is decided. Over a mesh
    the number would have to be sent to every device.
    """
    form = cast(Form, form_of(stored))
    codes = jnp.asarray(stored[form])
    return {form: codes + (value > jnp.inf).astype(codes.dtype), SCALE: stored[SCALE]}


def _blocks(shape: tuple[int, ...], scales: tuple[int, ...]) -> list[int]:
    """Each axis as two: its blocks, and the numbers of a block."""
    return [size for whole, count in zip(shape, scales, strict=True) for size in (count, whole // count)]


def _levels(codes: Array) -> jax.Array:
    """float32 levels of codes -8 .. 7, by halving the table: a lookup per number is slow on accelerators."""
    index = codes.astype(jnp.int32) + 8
    values: list[Any] = list(LEVELS)
    for bit in range(4):
        odd = (index >> bit) & 1 == 1
        values = [jnp.where(odd, b, a) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0].astype(jnp.float32)
