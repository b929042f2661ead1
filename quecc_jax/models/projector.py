"""The projector from tower width to decoder width."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.models.layers import linear


def projector_depth(kind: str) -> int:
    """Linear layers in a projector: `identity` 0, `linear` 1, `mlpNx_gelu` N.

    Raises:
      ValueError: the kind is none of these.
    """
    if kind in ("identity", "linear"):
        return int(kind == "linear")
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if not match or int(match[1]) < 1:
        raise ValueError(f"unknown projector {kind!r}; use linear, identity or mlpNx_gelu with N >= 1")
    return int(match[1])


class Projector(nn.Module):
    """LLaVA's projector: linear layers with exact GELU between them."""

    kind: str
    width: int
    """Decoder width M."""
    dtype: Any = jnp.float32
    variance: float = 1.0
    """Of the outputs relative to the inputs, at initialisation."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., M]; the identity needs D = M."""
        depth = projector_depth(self.kind)
        if depth == 0 and x.shape[-1] != self.width:
            raise ValueError(f"identity projector between widths {x.shape[-1]} and {self.width}")
        for i in range(depth):
            x = jax.nn.gelu(x, approximate=False) if i else x
            axes = ("embed", "mlp") if i == 0 else ("mlp", "embed")
            variance = self.variance if i == depth - 1 else 1.0
            x = linear(self.width, axes, dtype=self.dtype, variance=variance, name=f"fc{i + 1}")(x)
        return x
