"""The train state: one pytree, trainable and frozen parameters apart."""

from typing import NamedTuple

import jax
from jaxtyping import PyTree

TRAINED = {0: ("decoder",), 1: ("compressor", "projector"), 2: ("compressor", "projector", "decoder")}
"""Top-level parameter names that each stage trains; all others are frozen."""


class TrainState(NamedTuple):
    """Everything a step reads and writes."""

    step: jax.Array
    """int32 [], batches consumed, skipped ones included."""
    trainable: dict[str, PyTree]
    """float32 parameters that are differentiated."""
    frozen: dict[str, PyTree]
    """Parameters that are neither differentiated nor given optimizer slots."""
    opt_state: PyTree
    bad_run: jax.Array
    """int32 [], steps skipped in a row up to now."""
    skipped: jax.Array
    """int32 [], steps skipped in all."""


def split_params(params: dict[str, PyTree], stage: int) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """(trainable, frozen) parts of a parameter tree for a stage."""
    names = TRAINED[stage]
    return (
        {k: v for k, v in params.items() if k in names},
        {k: v for k, v in params.items() if k not in names},
    )
