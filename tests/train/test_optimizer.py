"""What weight decay acts on, parameter by parameter, and that AdamW is otherwise optax's own."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from quecc_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from quecc_jax.data.batch import batch_spec
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import named_leaves
from quecc_jax.train.optimizer import decays, make_optimizer, schedule
from quecc_jax.train.step import abstract_params
from tests.tiny import RUN
from tests.variants import VARIANTS, variant

DECAYED = {
    "kernel",
    "q_kernel",
    "k_kernel",
    "v_kernel",
    "embedding",
    "head",
    "token_embedding",
    "class_embedding",
    "position_embedding",
    "queries",
    "register",
    "newline",
}
"""Matrices, tables, and vectors that are learned as inputs: what torch calls a parameter and no bias."""
LEFT = {"scale", "bias", "q_bias", "k_bias", "v_bias"}


@functools.cache
def paths(model: ModelConfig) -> list[str]:
    run, mesh = dataclasses.replace(RUN, model=model), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return list(named_leaves(abstract_params(run, mesh, batch_spec(model, run.data, 1))))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=list(VARIANTS))
def test_every_parameter_of_every_model_is_decayed_or_left_alone_by_name(changes):
    """A parameter of a new name fails here until somebody says which it is."""
    names = {path: path.rpartition("/")[2] for path in paths(variant(**changes))}
    assert set(names.values()) <= DECAYED | LEFT
    assert {path for path, name in names.items() if decays(name)} == {
        path for path, name in names.items() if name in DECAYED
    }
    # Whatever carries a norm's or a bias' name stands in a module of that kind.
    assert all("norm" in path for path, name in names.items() if name == "scale")


def test_no_name_is_listed_in_vain():
    found = {path.rpartition("/")[2] for changes in VARIANTS.values() for path in paths(variant(**changes))}
    assert found == DECAYED | LEFT


@pytest.mark.parametrize(
    "ratio, steps, warmup", [(0.03, 41, 2), (0.2, 10, 2), (0.25, 9, 3), (0.0, 4, 0), (0.5, 1, 1), (1.0, 5, 5)]
)
def test_the_rate_rises_over_the_next_whole_number_of_steps_and_falls_to_zero_at_the_last(
    ratio, steps, warmup
):
    """The cosine's formula, written out; where nothing but warm-up is left the peak is just not reached."""
    rate = schedule(OptimizerConfig(learning_rate=3e-3, warmup_ratio=ratio), steps)
    fall = max(steps - warmup, 1)
    expected = [
        s / warmup if s < warmup else (1 + math.cos(math.pi * min(s - warmup, fall) / fall)) / 2
        for s in range(steps + 2)
    ]
    found = [float(rate(s)) for s in range(steps + 2)]
    np.testing.assert_allclose(found, 3e-3 * np.array(expected), rtol=2e-5, atol=1e-10)


PARAMS: dict[str, Any] = {
    "compressor": {
        "norm": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.5, -1.0])},
        "attention": {"q_kernel": jnp.ones((2, 2)), "q_bias": jnp.ones(2)},
    },
    "decoder": {"embedding": jnp.full((3, 2), 2.0), "head": jnp.full((2, 3), -1.0)},
}
MASK = {
    "compressor": {"norm": {"scale": False, "bias": False}, "attention": {"q_kernel": True, "q_bias": False}},
    "decoder": {"embedding": True, "head": True},
}
CONFIG = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, warmup_ratio=0.2)


def reference(config: OptimizerConfig, mask: Any) -> optax.GradientTransformation:
    adamw = optax.adamw(
        schedule(config, 10), config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=mask
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_five_steps_are_those_of_optax_with_a_mask(weight_decay):
    config = dataclasses.replace(CONFIG, weight_decay=weight_decay)
    runs = []
    for optimizer in (make_optimizer(config, 10), reference(config, MASK)):
        params: Any = PARAMS
        state = optimizer.init(params)
        for number in range(5):
            grads = jax.tree.map(lambda x, n=number: jnp.sin(x * (n + 1)), params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        runs.append(params)
    jax.tree.map(np.testing.assert_array_equal, *runs)


def test_without_gradients_weights_shrink_at_the_rate_of_their_part():
    config = dataclasses.replace(CONFIG, warmup_ratio=0.0, projector_learning_rate=3e-2)
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, PARAMS), optimizer.init(PARAMS), PARAMS)
    after: Any = optax.apply_updates(PARAMS, updates)
    np.testing.assert_allclose(after["decoder"]["embedding"], 2.0 * (1 - 1e-2 * 0.1))
    np.testing.assert_allclose(after["compressor"]["attention"]["q_kernel"], 1 - 3e-2 * 0.1)
    jax.tree.map(np.testing.assert_array_equal, after["compressor"]["norm"], PARAMS["compressor"]["norm"])


def test_the_projectors_rate_is_its_own():
    params = {**PARAMS, "projector": {"linear_1": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}}
    optimizer = make_optimizer(dataclasses.replace(CONFIG, projector_learning_rate=0.0), 10)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for _ in range(2):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
    after: Any = optax.apply_updates(params, updates)
    for name, part in params.items():
        moved = [
            not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (after[name], part)), strict=True)
        ]
        assert all(moved) if name == "decoder" else not any(moved), name


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_state_is_that_of_runs_that_decayed_everything(weight_decay):
    """Their checkpoints hold the state of optax.adamw without a mask."""
    config = dataclasses.replace(CONFIG, weight_decay=weight_decay)
    optimizers = make_optimizer(config, 10), reference(config, None)
    ours, before = (jax.eval_shape(optimizer.init, PARAMS) for optimizer in optimizers)
    assert jax.tree.structure(ours) == jax.tree.structure(before)  # type: ignore[operator]
