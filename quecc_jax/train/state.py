"""The train state: one pytree, trainable and frozen parameters apart."""

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from quecc_jax.config import RunConfig, TrainConfig
from quecc_jax.models.kernel_forms import in_form
from quecc_jax.models.lora import NAME as LORA
from quecc_jax.models.teacher import TEACHER


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


def trained_names(names: Collection[str], train: TrainConfig) -> set[str]:
    """Those of a parameter tree's top-level names that a stage trains. Adapters, where there are any, are trained in
    every stage, and stand in for the decoder."""
    trained: set[str] = {*train.trained}
    return (trained - {"decoder"} | {LORA} if LORA in names else trained).intersection(names)


def split_params(
    params: dict[str, PyTree], train: TrainConfig
) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """(trainable, frozen) parts of a parameter tree, adapters apart, for a stage."""
    names = trained_names(params, train)
    return (
        {k: v for k, v in params.items() if k in names},
        {k: v for k, v in params.items() if k not in names},
    )


def stored_frozen(frozen: dict[str, PyTree], config: RunConfig) -> dict[str, PyTree]:
    """Frozen parameters, or what stands for them, in the types and forms in which a run keeps them.

    The decoder under adapters, and one that a teacher has of its own, has the type of the model's products, to which
    all of it but the scales of norms is brought before it is used: the results are the same, with half the memory
    in bfloat16. The matrices of the frozen decoder's layers have the form that `train.frozen_weights` names.
    """
    model, form = config.model, config.train.frozen_weights

    def store(path: jax.tree_util.KeyPath, leaf: PyTree) -> PyTree:
        kept = jax.tree_util.DictKey("scale") in path or not jnp.issubdtype(leaf.dtype, jnp.floating)
        dtype = leaf.dtype if kept else jnp.dtype(model.dtype)
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
        return leaf.astype(dtype)

    if "decoder" in frozen and form != "auto":
        frozen = {**frozen, "decoder": in_form(frozen["decoder"], model.decoder, form)}
    if "decoder" in frozen and model.lora.rank:
        frozen = {**frozen, "decoder": jax.tree_util.tree_map_with_path(store, frozen["decoder"])}
    own = frozen.get(TEACHER, {})
    if "decoder" in own:
        decoder = jax.tree_util.tree_map_with_path(store, own["decoder"])
        frozen = {**frozen, TEACHER: {**own, "decoder": decoder}}
    return frozen
