"""The projector from tower width to decoder width."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.config.shapes import projector_depth
from quecc_jax.models.arrays import Array
from quecc_jax.models.layers import linear, with_axes


class Projector(nn.Module):
    """LLaVA's projector: linear layers with exact GELU between them."""

    kind: str
    width: int
    """Decoder width M."""
    dtype: DTypeLike = jnp.float32
    variance: float = 1.0
    """Of the outputs relative to the inputs, at initialisation."""
    has_newline: bool = False
    """Beside it stands `newline` [M], learned, which ends a row of an any-resolution image's map."""

    def setup(self) -> None:
        if self.has_newline:
            normal = with_axes(nn.initializers.normal(math.sqrt(self.variance / self.width)), "embed")
            self.newline = self.param("newline", normal, (self.width,))

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows M"]:
        """x [..., D] -> [..., M]; the identity needs D = M."""
        depth = projector_depth(self.kind)
        if depth == 0 and x.shape[-1] != self.width:
            raise ValueError(f"identity projector between widths {x.shape[-1]} and {self.width}")
        for i in range(depth):
            x = jax.nn.gelu(x, approximate=False) if i else x
            axes = ("embed", "mlp") if i == 0 else ("mlp", "embed")
            variance = self.variance if i == depth - 1 else 1.0
            x = linear(
                self.width,
                axes,
                bias=self.kind != "matrix",
                dtype=self.dtype,
                variance=variance,
                name=f"fc{i + 1}",
            )(x)
        return x
