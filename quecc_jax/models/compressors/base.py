"""What compressors read, what is counted of them, and the parts that several share."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree

from quecc_jax.models.arrays import Array
from quecc_jax.models.compressors.base_config import absorbs
from quecc_jax.models.layers import LayerNorm, constrain_batch, linear, matrix_init, with_axes

EPS = 1e-6


class Features(NamedTuple):
    """The frozen tower's view of P images, N patches each in raster order."""

    single: jax.Array
    """X_s [P, N, D], the select layer's states."""
    multi: jax.Array
    """X_m [P, N, levels * D], the states of several levels side by side."""
    attention: jax.Array | None = None
    """float32 [P, N], CLS' attention to the patches in the layer that reads the select layer's states:
    softmax over CLS and patches of one head as wide as all. None where the tower keeps none."""
    keys: Array | None = None
    """[P, N, D], that layer's keys of the patches."""
    cls: jax.Array | None = None
    """[P, 1, D], the select layer's CLS, where the tower keeps it for the decoder."""


def prepare(compressor: Any, features: Features) -> PyTree:
    """What a compressor computes of images, whatever is asked and at which V: what its `prepare` makes of their
    features, or these, where it has none."""
    return compressor.prepare(features) if hasattr(compressor, "prepare") else features


def finish(
    compressor: Any, prepared: PyTree, query: Float[Array, "P 1 text_width"]
) -> Float[Array, "P V_and_memory D"]:
    """What a compressor's call makes of the features that were `prepare`d, and of questions."""
    rest = compressor.finish if hasattr(compressor, "prepare") else compressor
    made: jax.Array = rest(prepared, query)
    return made


def image_grid(single: Float[Array, "P N D"]) -> int:
    """Side g of the patch grid; ValueError unless the patches are a square."""
    n = single.shape[1]
    grid = math.isqrt(n)
    if grid * grid != n:
        raise ValueError(f"{n} patches are not a square grid; drop CLS and keep the aspect square")
    return grid


def regions(x: Float[Array, "P N C"], side: int) -> Float[Array, "P V R C"]:
    """[P, g^2, C] -> [P, h^2, R, C]: the R patches of each square of a side h output grid that tiles g."""
    p, n, width = x.shape
    region = math.isqrt(n) // side
    x = x.reshape(p, side, region, side, region, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(p, side * side, region * region, width)


def attend_by_region(
    attend: "RegionAttention",
    queries: Float[Array, "P T D"],
    keys: Float[Array, "P N D"],
    values: Float[Array, "P N D"],
    sides: Sequence[int],
) -> Float[Array, "P T D"]:
    """[P, T, D]: each query averages the values of its own region.

    Args:
      queries: [P, T, D], those of one output grid behind those of the other.
      keys, values: [P, N, D]
      sides: h of each output grid; T is the sum of their squares.
    """
    parts = jnp.split(queries, np.cumsum(np.square(sides))[:-1], axis=1)
    made = [attend(q, regions(keys, h), regions(values, h)) for q, h in zip(parts, sides, strict=True)]
    return jnp.concatenate(made, axis=1)


class MLPNorm(nn.Module):
    """Linear, exact GELU, Linear, LayerNorm."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "P N C"]) -> Float[Array, "P N D"]:
        """x [P, N, C] -> [P, N, D]."""
        x = linear(self.width, ("embed", "mlp"), dtype=self.dtype, name="fc1")(x)
        x = jax.nn.gelu(x, approximate=False)
        x = constrain_batch(linear(self.width, ("mlp", "embed"), dtype=self.dtype, name="fc2")(x))
        return LayerNorm(EPS, name="norm")(x)


class RegionAttention(nn.Module):
    """Multi-head attention of V queries, each over the patches of its own region, or all over the same.

    Where few queries read a patch, one of a region always, the projections move to the query's side: keys
    are never projected (the key matrix is folded into the query), and values are projected after averaging.
    Per image that replaces 2 n D^2 multiply-adds by 2 V D^2 + 2 n H D if regions are the queries' own, and
    by 2 V D^2 + 2 V n (H - 1) D if all queries read the whole image.
    """

    heads: int
    dtype: DTypeLike
    shown: bool = True
    """Attention maps may show its weights: each query makes one visual token."""

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "#P V D"],
        keys: Float[Array, "#P *patches D"],
        values: Float[Array, "P *patches D"],
    ) -> Float[Array, "P V D"]:
        """Queries [P, V, D]; keys and values [P, V, R, D] for regions of R patches, or [P, N, D] for all
        queries together -> [P, V, D].

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
            kernels[name] = self.param(f"{name}_kernel", with_axes(matrix_init(1), *axes), (width, *split))
            biases[name] = self.param(f"{name}_bias", with_axes(nn.initializers.zeros, *axes[1:]), split)
        cast = functools.partial(jnp.asarray, dtype=self.dtype)
        kernels, biases = jax.tree.map(cast, (kernels, biases))
        # The key bias adds the same number to every logit of a query, which softmax ignores; it
        # is declared because the original's checkpoints carry it.
        q = jnp.einsum("bvd,dhk->bvhk", queries, kernels["q"]) + biases["q"]
        own = keys.ndim == 4
        if own or absorbs(queries.shape[1], keys.shape[1], self.heads, width):
            patches = "bvrd" if own else "brd"
            q = jnp.einsum("bvhk,dhk->bvhd", q, kernels["k"])
            weights = self._weights(f"bvhd,{patches}->bvhr", q, keys, split[1])
            average = jnp.einsum(f"bvhr,{patches}->bvhd", weights, values)
            average = nn.with_logical_constraint(average, _by_heads(average))
            out = jnp.einsum("bvhd,dhk->bvhk", average, kernels["v"])
        else:
            k = jnp.einsum("brd,dhk->brhk", keys, kernels["k"])
            v = jnp.einsum("brd,dhk->brhk", values, kernels["v"])
            weights = self._weights("bvhk,brhk->bvhr", q, k, split[1])
            out = jnp.einsum("bvhr,brhk->bvhk", weights, v)
        out = out + biases["v"]
        return linear(width, ("heads", "head_dim", "embed"), inputs=2, dtype=self.dtype, name="out")(out)

    def _weights(self, product: str, q: Array, keys: Array, head_dim: int) -> jax.Array:
        """Softmax [P, V, H, R] of queries times keys; kept in float32 as the intermediate `attention`, if
        shown."""
        q = nn.with_logical_constraint(q, _by_heads(q))
        logits = jnp.einsum(product, q, keys, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / math.sqrt(head_dim), axis=-1)
        if self.shown:
            self.sow("intermediates", "attention", weights)
        return weights.astype(self.dtype)


def _by_heads(x: Array) -> tuple[str | None, ...]:
    """Logical axes of x [P, V, H, ...]; a row that all images share is not split."""
    return ("batch" if x.shape[0] > 1 else None, None, "heads", None)
