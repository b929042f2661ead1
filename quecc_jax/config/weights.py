"""Names of the forms in which a decoder's matrices are kept."""

from typing import Literal

Form = Literal["int8", "int4", "nf4"]
"""Of fewer bits than a floating-point number; `quecc_jax.models.quantized` says what they are."""
FORMS: tuple[Form, ...] = ("int8", "int4", "nf4")

Weights = Literal["run", "float32", "bfloat16", "int8", "int4", "nf4"]
"""In which a model answers: `run` is its own model.dtype."""
FrozenWeights = Literal["auto", "int8", "int4", "nf4"]
"""In which a frozen decoder is trained around: `auto` is float32, under adapters model.dtype."""
