"""The vision tower against the same mathematics in NumPy, and the choice of its hidden states."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.config import VisionConfig
from quecc_jax.config.shapes import hidden_indices
from quecc_jax.models.towers.vit import VisionTower, sine_cosine_init, split_features
from tests.models.reference import tower
from tests.tiny import MODEL, random_like

CONFIG = dataclasses.replace(MODEL.vision, levels=(2, 0, -1), select_layer=-2)


def tower_params(config: VisionConfig) -> dict:
    side = config.image_size
    boxed = jax.eval_shape(VisionTower(config).init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return random_like(nn.meta.unbox(boxed)["params"])


@settings(deadline=None)
@given(
    st.integers(1, 8).flatmap(
        lambda depth: st.tuples(
            st.just(depth),
            st.lists(st.integers(-depth - 1, depth), min_size=1, max_size=5),
            st.integers(-depth - 1, depth),
        )
    )
)
def test_levels_count_like_a_list_of_all_states(choice):
    depth, levels, select = choice
    config = VisionConfig(depth=depth, levels=tuple(levels), select_layer=select)
    states = list(range(depth + 1))
    indices = hidden_indices(config)
    assert list(indices) == sorted({states[k] for k in (*levels, select)})
    stacked = jnp.broadcast_to(jnp.array(indices, jnp.float32)[:, None], (2, len(indices), 3))
    single, multi = split_features(stacked, config)[:2]
    np.testing.assert_array_equal(single, np.full((2, 3), states[select]))
    np.testing.assert_array_equal(multi, [np.repeat([states[k] for k in levels], 3)] * 2)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_tower_equals_its_mathematics(activation):
    config = dataclasses.replace(CONFIG, activation=activation)
    params = tower_params(config)
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    ours = np.asarray(jax.jit(VisionTower(config).apply)({"params": params}, pixels))
    assert ours.shape == (2, 16, 3, 16) and hidden_indices(config) == (0, 2, 3)
    for row, image in enumerate(pixels):
        expected = tower(params, config, image)
        for place, index in enumerate(hidden_indices(config)):
            np.testing.assert_allclose(ours[row, :, place], expected[index], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("levels, used", [((1, 0), 1), ((0,), 0), ((-2, 1), 2)])
def test_layers_above_the_last_state_that_is_read_never_run(levels, used):
    """They keep their place in the parameters, whatever stands there."""
    config = dataclasses.replace(CONFIG, levels=levels, select_layer=levels[0])
    params = tower_params(config)
    full = tower_params(CONFIG)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, full)
    spoiled = params | {"layers": jax.tree.map(lambda leaf: leaf.copy(), params["layers"])}
    for leaf in jax.tree.leaves(spoiled["layers"]):
        leaf[used:] = np.nan
    pixels = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)

    @jax.jit
    def run(params):
        def total(params):
            states: Any = VisionTower(config).apply({"params": params}, pixels)
            return jnp.sum(states**2), states

        return jax.grad(total, has_aux=True)(params)

    grads, states = run(spoiled)
    expected = tower(params, config, pixels[0])
    for place, index in enumerate(hidden_indices(config)):
        np.testing.assert_allclose(states[0, :, place], expected[index], rtol=1e-3, atol=1e-4)
    for leaf in jax.tree.leaves(grads["layers"]):
        assert leaf.shape[0] == config.depth and not leaf[used:].any()


def test_pixels_of_another_size_are_a_value_error():
    with pytest.raises(ValueError, match=r"\(12, 16, 3\).*\(16, 16, 3\)"):
        jax.eval_shape(VisionTower(CONFIG).init, jax.random.key(0), jnp.zeros((1, 12, 16, 3)))


def test_initial_positions_tell_neighbours_from_strangers():
    table = np.asarray(sine_cosine_init(jax.random.key(0), (1 + 36, 32)))
    assert table.shape == (37, 32) and not table[0].any()
    grid = table[1:].reshape(6, 6, 32)
    likeness = grid @ grid[2, 3]
    assert likeness.argmax() == 2 * 6 + 3
    assert min(likeness[1, 3], likeness[3, 3], likeness[2, 2], likeness[2, 4]) > np.abs(likeness[5]).max()
