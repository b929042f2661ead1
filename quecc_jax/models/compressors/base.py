"""What compressors read, what is counted of them, and the parts that several share."""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from quecc_jax.models.layers import LayerNorm, by_rows, linear, logical, matrix_init

EPS = 1e-6


class Features(NamedTuple):
    """The frozen tower's view of P pictures, n patches each in raster order."""

    single: jax.Array
    """X_s [P, n, D], the select layer's states."""
    multi: jax.Array
    """X_m [P, n, levels * D], the states of several levels side by side."""


class Cost(NamedTuple):
    """Of one picture, norms, biases, activations and softmax left out."""

    params: int = 0
    """Weights."""
    flops: float = 0.0
    """Forward FLOPs; a multiply-add is two."""
    first: float = 0.0
    """Those of `flops` in products that act on the tower's states themselves, whose gradient the backward
    pass does not need."""


def picture_grid(single: jax.Array) -> int:
    """Side g of the patch grid; ValueError unless the patches are a square."""
    n = single.shape[1]
    grid = math.isqrt(n)
    if grid * grid != n:
        raise ValueError(f"{n} patches are not a square grid; drop CLS and keep the aspect square")
    return grid


def regions(x: jax.Array, side: int) -> jax.Array:
    """[P, g^2, C] -> [P, h^2, R, C]: the R patches of each square of a side h output grid that tiles g."""
    p, n, width = x.shape
    region = math.isqrt(n) // side
    x = x.reshape(p, side, region, side, region, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(p, side * side, region * region, width)


class Tower(nn.Module):
    """Linear, exact GELU, Linear, LayerNorm."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [P, n, C] -> [P, n, D]."""
        x = linear(self.width, ("embed", "mlp"), dtype=self.dtype, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=False)
        x = by_rows(linear(self.width, ("mlp", "embed"), dtype=self.dtype, name="fc2")(x))
        return LayerNorm(EPS, name="norm")(x)


class RegionAttention(nn.Module):
    """Multi-head attention of one query per region over that region's patches.

    With a single query the projections move to the query's side: keys are never projected (the
    key matrix is folded into the query), and values are projected after averaging. Per picture
    that replaces 2 n D^2 multiply-adds by 2 V D^2 + 2 n H D.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """queries [P, V, D], keys and values [P, V, R, D] for regions of R patches -> [P, V, D].

        Raises:
          ValueError: the heads do not divide D.
        """
        width = queries.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} is not a multiple of {self.heads} heads")
        split = (self.heads, width // self.heads)
        kernels, biases = {}, {}
        for name in "qkv":
            axes = ("embed", "heads", "head_dim")
            kernels[name] = self.param(f"{name}_kernel", logical(matrix_init(1), *axes), (width, *split))
            biases[name] = self.param(f"{name}_bias", logical(nn.initializers.zeros, *axes[1:]), split)
        split_axes = ("batch", None, "heads", None)
        # The key bias adds the same number to every logit of a query, which softmax ignores; it
        # is declared because the original's checkpoints carry it.
        cast = functools.partial(jnp.asarray, dtype=self.dtype)
        q = jnp.einsum("bvd,dhk->bvhk", queries, cast(kernels["q"])) + cast(biases["q"])
        q = jnp.einsum("bvhk,dhk->bvhd", q, cast(kernels["k"]))
        q = nn.with_logical_constraint(q, split_axes)
        logits = jnp.einsum("bvhd,bvrd->bvhr", q, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / math.sqrt(split[1]), axis=-1)
        self.sow("intermediates", "attention", weights)
        average = jnp.einsum("bvhr,bvrd->bvhd", weights.astype(self.dtype), values)
        average = nn.with_logical_constraint(average, split_axes)
        out = jnp.einsum("bvhd,dhk->bvhk", average, cast(kernels["v"])) + cast(biases["v"])
        return linear(width, ("heads", "head_dim", "embed"), inputs=2, dtype=self.dtype, name="out")(out)
