"""Names of the forms in which a decoder's matrices are kept, and their sizes."""

import math
from typing import Literal

Form = Literal["int8", "int4", "nf4"]
"""Of fewer bits than a floating-point number; `quecc_jax.models.quantized` says what they are."""
FORMS: tuple[Form, ...] = ("int8", "int4", "nf4")

Weights = Literal["run", "float32", "bfloat16", "int8", "int4", "nf4"]
"""In which a model answers: `run` is its own model.dtype."""
FrozenWeights = Literal["auto", "int8", "int4", "nf4"]
"""In which a frozen decoder is trained around: `auto` is float32, under adapters model.dtype."""

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4, "nf4": 4}
"""Of a number of a matrix, scales left out."""
BLOCK = 64
"""Numbers that share a scale in `int4` and `nf4`."""


def scale_shape(shape: tuple[int, ...], form: Form, inputs: int) -> tuple[int, ...]:
    """The shape of the scales, float32, of a matrix [*in, *out] with so many input axes."""
    *before, last = shape[:inputs]
    if form == "int8":
        return (*(1 for _ in range(inputs)), *shape[inputs:])
    block = next(size for size in range(min(BLOCK, last), 0, -1) if last % size == 0)
    return (*before, last // block, *shape[inputs:])


def matrix_bytes(shape: tuple[int, ...], weights: Weights, inputs: int) -> float:
    """Bytes of a matrix [*in, *out] with so many input axes and of its scales."""
    scales = next((math.prod(scale_shape(shape, form, inputs)) for form in FORMS if form == weights), 0)
    return BITS[weights] / 8 * math.prod(shape) + 4 * scales
