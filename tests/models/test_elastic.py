"""One set of weights at several V: what is shared, and that a V served alone is a slice of all."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax import flops
from quecc_jax.config import ModelConfig, QueccConfig, VisionConfig
from quecc_jax.config.compressors import config_class, exchanged
from quecc_jax.config.shapes import at_visual_tokens, first_token
from quecc_jax.errors import UserError
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.build import make_compressor
from quecc_jax.models.compressors.quecc import DepthwiseConv, overlaps
from tests.compressors import ELASTIC, fitting
from tests.tiny import MODEL, random_like


def model_of(
    name: str = "quecc", elastic: tuple[int, ...] = (1, 4, 9, 16), grid: int = 12, **more: Any
) -> ModelConfig:
    vision = VisionConfig(
        image_size=4 * grid, patch_size=4, width=16, depth=3, heads=2, mlp_width=32, levels=(1, 2, 3)
    )
    compressor = fitting(name, elastic=elastic, heads=2, queries=16, **more)
    return dataclasses.replace(MODEL, vision=vision, compressor=compressor)


def inputs(model: ModelConfig) -> tuple[Features, jax.Array]:
    rng, (n, d) = np.random.default_rng(0), (model.vision.patches, model.vision.width)
    single, multi, query = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, n, d), (2, n, 3 * d), (2, 1, model.decoder.width))
    )
    return Features(single, multi), query


def params_of(model: ModelConfig) -> Any:
    module, given = make_compressor(model), inputs(model)
    shapes: Any = jax.eval_shape(lambda: module.init(jax.random.key(0), *given)).get("params", {})
    return random_like(nn.meta.unbox(shapes))


def tokens_of(model: ModelConfig, params: Any) -> np.ndarray:
    return np.asarray(make_compressor(model).apply({"params": params}, *inputs(model)))


@pytest.mark.parametrize("name", ELASTIC)
def test_a_v_served_alone_is_a_slice_of_all(name):
    model = model_of(name)
    params = params_of(model)
    whole = tokens_of(model, params)
    assert whole.shape == (2, model.num_output_tokens, 16)
    for v in (1, 4, 9, 16):
        alone, first = at_visual_tokens(model, v), first_token(model, v)
        assert jax.tree.map(np.shape, params_of(alone)) == jax.tree.map(np.shape, params)
        assert alone.visual_tokens == alone.num_output_tokens == v and not alone.elastic_choices
        np.testing.assert_allclose(tokens_of(alone, params), whole[:, first : first + v], atol=1e-5)
    assert at_visual_tokens(model) == at_visual_tokens(model, 16)
    with pytest.raises(UserError, match="makes 1 or 4 or 9 or 16 visual tokens of an image, not 5"):
        at_visual_tokens(model, 5)


@pytest.mark.parametrize("name", [name for name in ELASTIC if config_class(name).shape == "grid"])
@pytest.mark.parametrize("v, stride", [(1, 12), (9, 4)])
def test_with_one_v_it_is_the_plain_compressor(name, v, stride):
    model = model_of(name, elastic=(v,))
    plain = dataclasses.replace(
        model, compressor=exchanged(model.compressor, elastic=(), kernel=stride, stride=stride)
    )
    params = params_of(plain)
    assert jax.tree.map(np.shape, params_of(model)) == jax.tree.map(np.shape, params)
    np.testing.assert_array_equal(tokens_of(model, params), tokens_of(plain, params))
    assert flops.compressor_cost(model) == flops.compressor_cost(plain)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24))
def test_a_resized_kernel_sums_what_each_weight_covers(window, kernel):
    weights = np.random.default_rng(window).normal(size=(kernel, kernel))
    # Both divide this grid, on which a weight is spread evenly over the places that it covers.
    spread = np.kron(weights, np.ones((window, window))) / window**2
    expected = spread.reshape(window, kernel, window, kernel).sum(axis=(1, 3))
    parts = overlaps(window, kernel)
    np.testing.assert_allclose(parts @ weights @ parts.T, expected, atol=1e-5)


@pytest.mark.parametrize("window", [6, 4, 3])
def test_an_elastic_convolution_is_that_of_the_resized_kernel(window):
    """Windows of 4 do not divide the kernel of 6."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(6, 6, 1, 5)), "bias": rng.normal(size=5)}
    x = rng.normal(size=(2, 12, 12, 5)).astype(np.float32)
    parts = overlaps(window, 6)
    kernel = np.einsum("ar,bs,rsd->abd", parts, parts, params["kernel"][:, :, 0])
    side = 12 // window
    expected = np.einsum("bhrwsd,rsd->bhwd", x.reshape(2, side, window, side, window, 5), kernel)
    ours: Any = DepthwiseConv(6, 6, np.float32).apply({"params": params}, x, window)
    np.testing.assert_allclose(ours, expected + params["bias"], atol=1e-4)


def test_a_pattern_keeps_its_weight_at_every_v():
    """A half-plane that the kernel tells from the other half is told apart by every window of even side."""
    kernel = np.ones((12, 12, 1, 1), np.float32)
    kernel[6:] = -1
    half = np.zeros((1, 12, 12, 1), np.float32)
    for window in (12, 6, 4, 2):
        x = half.copy()
        for top in range(0, 12, window):
            x[:, top : top + window // 2] = 1
        made: Any = DepthwiseConv(12, 12, np.float32).apply(
            {"params": {"kernel": kernel, "bias": np.zeros(1)}}, x, window
        )
        np.testing.assert_allclose(made, 72.0)


@pytest.mark.parametrize(
    "change, grid, message",
    [
        ({"elastic": (4, 1)}, 12, "order them"),
        ({"elastic": (0, 1)}, 12, "order them"),
        ({"elastic": (1, 25)}, 12, r"tile a 12 x 12 grid; these do: \[1, 4, 9, 16, 36, 144\]"),
        ({"elastic": (1, 4), "tokens": 9}, 12, "tokens 9 is none of the elastic"),
    ],
)
def test_what_does_not_fit_is_said(change, grid, message):
    with pytest.raises(ValueError, match=message):
        QueccConfig(**change).num_tokens(grid)


def test_all_v_together_cost_little_more_than_one():
    """The paper's sizes at V in 1, 4, 16, 36, 64: what is trained together against the largest alone."""
    model = ModelConfig(compressor=QueccConfig(elastic=(1, 4, 16, 36, 64)))
    together, largest = flops.compressor_cost(model), flops.compressor_cost(at_visual_tokens(model))
    assert together.params == largest.params == flops.compressor_cost(at_visual_tokens(model, 1)).params
    assert largest.flops < together.flops < 1.1 * largest.flops
