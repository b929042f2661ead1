"""Matrices in few bits: what rounding may cost, what is stored, and that products are those of NumPy."""

import functools
import statistics

import flax.linen as nn
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import DecoderConfig, LoraConfig
from quecc_jax.config.weights import FORMS, scale_shape
from quecc_jax.models.decoder import Decoder, unstack
from quecc_jax.models.kernel_forms import in_form
from quecc_jax.models.layers import Linear
from quecc_jax.models.quantized import LEVELS, dequantize, form_of, quantize
from tests import tiny
from tests.models.decoders import ONES, PLACES, S, everything

LLAMA = DecoderConfig(vocab_size=64, width=32, depth=3, heads=4, kv_heads=2, mlp_width=48)
LORA = LoraConfig(rank=4, targets=("q", "down"))
ROUNDED = jax.jit(quantize, static_argnums=(1, 2))
WIDEST = {"int8": 0.5, "int4": 0.5, "nf4": max(np.diff(LEVELS)) / 2}
"""Half of the largest step, in the scale's unit."""


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def read(stored: dict) -> np.ndarray:
    """A stored matrix by a plain loop over its numbers, in float64."""
    form = form_of(stored)
    codes, scale = np.asarray(stored[form]).astype(int), np.asarray(stored["scale"], np.float64)
    blocks = [n // count for n, count in zip(codes.shape, scale.shape, strict=True)]
    out = np.empty(codes.shape)
    for index in np.ndindex(codes.shape):
        one = LEVELS[codes[index] + 8] if form == "nf4" else codes[index]
        out[index] = one * scale[tuple(i // block for i, block in zip(index, blocks, strict=True))]
    return out


def spread(scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A scale for each number."""
    for axis, size in enumerate(shape):
        scale = np.repeat(scale, size // scale.shape[axis], axis)
    return scale


shapes = st.sampled_from([((6, 5), 1), ((64, 3), 1), ((130, 2), 1), ((192, 2, 3), 1), ((2, 96, 3), 2)])


@pytest.mark.parametrize("form", FORMS)
@hypothesis.given(st.data())
@hypothesis.settings(max_examples=30, deadline=None)
def test_no_number_moves_by_more_than_half_a_step(form, data):
    shape, inputs = data.draw(shapes)
    kernel = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32)))
    # Where a step is smaller than the smallest normal float32, there is no half of it.
    kernel[np.abs(kernel) < 1e-30] = 0
    stored = jax.device_get(ROUNDED(kernel, form, inputs))
    found, steps = read(stored), spread(stored["scale"], shape)
    assert np.all(np.abs(found - kernel) <= steps * WIDEST[form] * (1 + 1e-5))
    assert not found[kernel == 0].any()
    np.testing.assert_allclose(dequantize(stored), found, rtol=1e-6)


@pytest.mark.parametrize("form, most", [("int8", 1 / 127), ("int4", 1 / 7), ("nf4", 1.0)])
def test_a_scale_belongs_to_the_largest_number_of_its_block(form, most):
    kernel = numbers((128, 3))
    scale = np.asarray(quantize(jnp.asarray(kernel), form, 1)["scale"])
    blocks = np.abs(kernel).reshape(-1, 128 if form == "int8" else 64, 3)
    np.testing.assert_allclose(scale, blocks.max(axis=1) * most, rtol=1e-6)


@pytest.mark.parametrize(
    "shape, inputs, int8, blocks",
    [
        ((4096, 32, 128), 1, (1, 32, 128), (64, 32, 128)),
        ((32, 128, 4096), 2, (1, 1, 4096), (32, 2, 4096)),
        ((32, 96, 3072), 2, (1, 1, 3072), (32, 2, 3072)),
        ((11008, 4096), 1, (1, 4096), (172, 4096)),
        ((24, 8), 1, (1, 8), (1, 8)),
        ((67, 8), 1, (1, 8), (67, 8)),
    ],
)
def test_blocks_lie_along_the_last_input_axis_and_divide_it(shape, inputs, int8, blocks):
    assert scale_shape(shape, "int8", inputs) == int8
    assert scale_shape(shape, "int4", inputs) == scale_shape(shape, "nf4", inputs) == blocks


def test_the_levels_of_nf4_are_the_quantiles_that_its_paper_defines():
    """Eight quantiles above zero, seven below, of equal share up to one at the outside; the largest is one."""
    normal, outside = statistics.NormalDist(), 0.9677083
    above = [normal.inv_cdf(outside + (0.5 - outside) * k / 8) for k in range(8)]
    below = [-normal.inv_cdf(outside + (0.5 - outside) * k / 7) for k in range(7)]
    expected = np.array(sorted([*above, *below, 0.0])) / max(above)
    np.testing.assert_allclose(LEVELS, expected, atol=2e-7)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_can_say_exactly_stays_and_a_second_rounding_changes_nothing(form):
    codes = np.arange(-7, 8) if form != "nf4" else np.arange(-8, 8)
    values = np.array(LEVELS)[codes + 8] if form == "nf4" else codes / 4.0
    kernel = np.resize(values, (60, 2)).astype(np.float32)
    if form == "int8":
        kernel[:, 0] *= 127 / 7
        kernel[:] = np.rint(kernel * 4) / 4
        kernel[0] = 127 / 4
    stored = quantize(jnp.asarray(kernel), form, 1)
    np.testing.assert_allclose(dequantize(stored), kernel, rtol=1e-6)
    again = quantize(dequantize(stored), form, 1)
    np.testing.assert_array_equal(np.asarray(again[form]), np.asarray(stored[form]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_finite_shows_in_the_scale(form, bad):
    kernel = numbers((64, 3))
    kernel[5, 1] = bad
    finite = np.isfinite(np.asarray(quantize(jnp.asarray(kernel), form, 1)["scale"]))
    assert finite[0].tolist() == [True, False, True]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape, inputs", [((128, 4, 6), 1), ((4, 64, 6), 2)])
def test_a_product_is_that_of_numpy_with_the_dequantized_matrix(form, shape, inputs):
    outputs = shape[inputs:]
    layer = Linear(outputs, (None,) * len(shape), inputs=inputs, name="out")
    x = numbers((5, *shape[:inputs]), 1)
    bias, stored = numbers(outputs, 3), quantize(jnp.asarray(numbers(shape, 2)), form, inputs)
    found = np.asarray(layer.apply({"params": {"kernel": stored, "bias": bias}}, x))
    matrix = read(jax.device_get(stored))
    expected = np.tensordot(x.astype(np.float64), matrix, inputs) + bias
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_input_has_the_gradient_of_the_dequantized_matrix_and_nothing_whole_is_kept_for_it(form):
    layer, x = Linear((6,), ("embed", "mlp"), bias=False), numbers((5, 128), 1)
    stored = quantize(jnp.asarray(numbers((128, 6), 2)), form, 1)

    def loss(kernel: object, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(layer.apply({"params": {"kernel": kernel}}, x)))  # type: ignore[arg-type]

    expected = jax.grad(functools.partial(loss, dequantize(stored)))(x)
    np.testing.assert_allclose(jax.grad(functools.partial(loss, stored))(x), expected, rtol=1e-5, atol=1e-6)
    _, backward = jax.vjp(functools.partial(loss, stored), jnp.asarray(x))
    kept = [leaf for leaf in jax.tree.leaves(backward) if getattr(leaf, "shape", ()) == (128, 6)]
    assert {leaf.dtype for leaf in kept} == {stored[form].dtype}


@functools.cache
def decoder() -> dict:
    model = Decoder(LLAMA, lora=LORA)
    boxed = jax.eval_shape(
        lambda t: model.init(jax.random.key(0), t, method=everything), jnp.zeros((1, S), jnp.int32)
    )
    return tiny.random_like(nn.meta.unbox(boxed)["params"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("layers", [None, 2])
def test_scanned_and_unrolled_layers_read_stored_matrices_beside_adapters(form, unrolled, layers):
    stored = in_form(decoder(), LLAMA, form)
    plain = in_form(stored, LLAMA, None)
    assert {form_of(layer["kernel"]) for name, layer in stored["layers"].items() if "norm" not in name} == {
        form
    }
    assert {form_of(layer.get("kernel")) for layer in plain["layers"].values()} == {None}
    x = numbers((2, S, 32), 1)

    def hidden(params: dict) -> np.ndarray:
        model = Decoder(LLAMA, unrolled=unrolled, lora=LORA)
        given = {"params": unstack(params) if unrolled else params}
        return np.asarray(model.apply(given, x, PLACES, ONES, layers=layers)[0])

    np.testing.assert_allclose(hidden(stored), hidden(plain), rtol=1e-4, atol=1e-4)
    # Rounding is seen at all, and does not ruin the output.
    moved = np.abs(hidden(stored) - hidden(decoder())).mean() / np.abs(hidden(stored)).mean()
    assert 1e-3 < moved < 1.0


def test_another_form_is_reached_by_way_of_the_numbers():
    first = in_form(decoder(), LLAMA, "nf4")
    second = in_form(first, LLAMA, "int8")
    expected = in_form(in_form(first, LLAMA, None), LLAMA, "int8")
    jax.tree.map(np.testing.assert_array_equal, second, expected)
