"""A compressor that the library does not know: one look at the image, where the question says."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.base_config import CompressorConfig, Cost, Sizes
from quecc_jax.models.layers import linear


@dataclasses.dataclass(frozen=True)
class LookConfig(CompressorConfig):
    """V = 1."""

    name: Literal["look"] = "look"
    shape = "free"
    sharpness: float = 1.0

    @property
    def reads_question(self) -> bool:
        return True

    def num_tokens(self, grid: int) -> int:
        return 1

    def cost(self, sizes: Sizes) -> Cost:
        weights, read = sizes.query_width * sizes.width + sizes.width**2, 2 * sizes.patches * sizes.width
        return Cost(weights, 2.0 * (weights + read), 2.0 * read)


def build(settings: LookConfig, sizes: Sizes, dtype: Any, name: str | None) -> nn.Module:
    return Look(settings.sharpness, sizes.width, dtype, name=name)


class Look(nn.Module):
    sharpness: float
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, features: Features, query: jax.Array) -> jax.Array:
        x = features.single.astype(self.dtype)
        q = linear(self.width, ("mlp", "embed"), dtype=self.dtype, name="asked")(query.astype(self.dtype))
        weights = jax.nn.softmax(self.sharpness * jnp.einsum("pvd,pnd->pvn", q, x), axis=-1)
        self.sow("intermediates", "attention", weights[:, :, None])
        seen = jnp.einsum("pvn,pnd->pvd", weights, x)
        return linear(self.width, ("mlp", "embed"), dtype=self.dtype, name="out")(seen)
