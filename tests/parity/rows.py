"""Rows and towers that several comparisons run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.config import VisionConfig
from quecc_jax.data.batch import Batch
from quecc_jax.data.tiles import Arrangement
from quecc_jax.models.towers.vit import VisionTower


def row_of_tiles(
    first: int, stands: Arrangement, pixels: np.ndarray, maps: np.ndarray | None = None
) -> Batch:
    """One row: the token `first`, an image in crops [I, side, side, 3] as it stands, and tokens 7 and 9."""
    length = len(stands.slots) + 3
    tokens, slots = np.zeros((1, length), np.int32), np.full((1, length), -1, np.int32)
    tokens[0, [0, -2, -1]], slots[0, 1:-2] = (first, 7, 9), stands.slots
    return Batch(
        tokens=tokens,
        slots=slots,
        labels=tokens,
        positions=np.arange(length, dtype=np.int32)[None],
        segments=np.ones_like(tokens),
        queries=np.zeros((1, 2), np.int32),
        query_segments=np.ones((1, 2), np.int32),
        query_ends=np.ones((1, len(pixels)), np.int32),
        pixels=pixels[None],
        maps=maps,
    )


def gradients_and_states(config: VisionConfig, params: Any, pixels: Any, cotangent: Any) -> tuple[Any, Any]:
    """Gradients of sum(states * cotangent) by all of `params`, whose entry `vision` is a tower's, and its states."""

    @jax.jit
    def run(params: Any) -> Any:
        def total(params: Any) -> Any:
            states: Any = VisionTower(config).apply({"params": params["vision"]}, pixels)
            return jnp.sum(states * cotangent), states

        return jax.grad(total, has_aux=True)(params)

    grads, states = run(params)
    return grads, states
