"""Adapters in the tree of parameters: beside the matrices that they change, apart under `lora`, or merged."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from quecc_jax.config import LoraConfig, ModelConfig

NAME = "lora"
"""Top-level name of the adapters where they stand apart, so that they are trained, saved and read as a whole."""
PAIR = ("lora_a", "lora_b")
"""A [*in, rank] and B [rank, *out] of a matrix [*in, *out], each with an axis of layers in front."""

Params = dict[str, PyTree]
"""By top-level name."""


def apart(params: Params) -> Params:
    """The decoder's adapters, if it has any, under `lora`, at the paths that they have in the decoder."""
    if "decoder" not in params:
        return params
    kept, taken = _take(params["decoder"])
    return {**params, "decoder": kept, NAME: taken} if taken else params


def _take(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tree without its adapters, and they alone."""
    kept, taken = {}, {}
    for name, value in tree.items():
        if name in PAIR:
            taken[name] = value
        elif isinstance(value, dict):
            kept[name], inner = _take(value)
            if inner:
                taken[name] = inner
        else:
            kept[name] = value
    return kept, taken


def joined(params: Params) -> Params:
    """The inverse of `apart`: parameters as the model reads them."""
    if NAME not in params:
        return params
    rest = {name: value for name, value in params.items() if name != NAME}
    return {**rest, "decoder": _put(rest["decoder"], params[NAME])}


def _put(tree: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    nested = {k: _put(tree[k], v) if isinstance(v, dict) else v for k, v in more.items()}
    return {**tree, **nested}


def merged(params: Params, lora: LoraConfig) -> Params:
    """Parameters, with adapters apart, of the `without_adapters` that computes the same: each W is W + scale A B,
    summed in float32 and kept in W's type."""
    if NAME not in params:
        return params
    layers = dict(params["decoder"]["layers"])
    for name, pair in params[NAME]["layers"].items():
        kernel = _add(layers[name]["kernel"], *(pair[one] for one in PAIR), scale=lora.scale)
        layers[name] = {**layers[name], "kernel": kernel}
    rest = {name: value for name, value in params.items() if name != NAME}
    return {**rest, "decoder": {**params["decoder"], "layers": layers}}


def without_adapters(model: ModelConfig) -> ModelConfig:
    """The model that reads `merged` parameters."""
    return dataclasses.replace(model, lora=LoraConfig())


@functools.partial(jax.jit, static_argnames="scale")
def _add(kernel: jax.Array, first: jax.Array, second: jax.Array, *, scale: float) -> jax.Array:
    def one(layer: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        kernel, first, second = (part.astype(jnp.float32) for part in layer)
        return kernel + scale * jnp.tensordot(first, second, 1)

    # A layer at a time, so that a stack of float32 sums never stands beside the kernels.
    return jax.lax.map(lambda layer: one(layer).astype(kernel.dtype), (kernel, first, second))
