"""PruMerge (arXiv 2403.15388): patches that CLS attends to, merged with their like. Training-free."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.prumerge_config import NEIGHBOURS, PruMergeConfig


def build(settings: PruMergeConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    return PruMerge(settings.num_tokens(sizes.grid), 0, dtype, name=name)


class PruMerge(nn.Module):
    """V - 1 kept patches, each with its nearest ones added to it, and one token for the rest.

    With CLS' attention a and keys k (`Features`), all sums over the select layer's states x:

        kept    the patches with the largest a, in that order; patches that are alike in a stand in raster order
        merged  x_i + sum of a_j x_j over the min(32, n - 1) patches j other than i with the largest cosine of
                k_i and k_j, be they kept themselves or not
        rest    sum of a_j x_j over all patches that are not kept, the last token

    The original keeps a number of patches that depends on the image (those whose attention lies 1.5
    interquartile ranges above the third quartile), or a fixed ratio; here it is fixed, as shapes are. V = 1
    has the rest alone: the whole image, averaged by CLS' attention.

    `evenly` of the kept ones are PruMerge+'s: patches at equal distances along the raster order, the i-th of
    m at floor((i + 1/2) n / m). They stand behind the others, which are chosen among the remaining patches,
    so that none is kept twice.
    """

    tokens: int
    """V"""
    evenly: int = 0
    dtype: DTypeLike = jnp.float32

    def __call__(self, features: Features, query: Float[Array, "P 1 text_width"]) -> Float[Array, "P V D"]:
        """Tokens [P, V, D] of X_s [P, N, D], attention and keys; X_m and the question are not read.

        Raises:
          ValueError: the tower keeps no attention (`VisionConfig.attention`).
        """
        del query
        if features.attention is None or features.keys is None:
            raise ValueError("PruMerge reads CLS' attention and keys, which the tower's states lack")
        x, a = features.single.astype(self.dtype), features.attention
        p, n = a.shape
        every = jnp.broadcast_to(
            ((2 * jnp.arange(self.evenly) + 1) * n) // max(2 * self.evenly, 1), (p, self.evenly)
        )
        free = jnp.where(_chosen(every, n), -1.0, a)
        _, top = jax.lax.top_k(free, self.tokens - 1 - self.evenly)
        kept = jnp.concatenate([top, every], axis=1)
        k = features.keys.astype(jnp.float32)
        k = k * jax.lax.rsqrt(jnp.maximum(jnp.sum(k * k, axis=-1, keepdims=True), 1e-24))
        mine = jnp.take_along_axis(k, kept[..., None], axis=1)
        alike = jnp.einsum("pvd,pnd->pvn", mine, k)
        own = kept[..., None] == jnp.arange(n)
        _, near = jax.lax.top_k(jnp.where(own, -jnp.inf, alike), min(NEIGHBOURS, n - 1))
        merged = own + _chosen(near, n) * a[:, None]
        rest = jnp.where(_chosen(kept, n), 0.0, a)
        weights = jnp.concatenate([merged, rest[:, None]], axis=1)
        self.sow("intermediates", "attention", (weights / jnp.sum(weights, -1, keepdims=True))[:, :, None])
        return jnp.einsum("pvn,pnd->pvd", weights.astype(self.dtype), x)


def _chosen(index: Array, n: int) -> jax.Array:
    """bool [..., n]: which of n positions are among index [..., m]."""
    return jnp.any(index[..., None] == jnp.arange(n), axis=-2)
