"""QueCC against the original's arrays, against multi-head attention written out, and its geometry."""

import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.config import ModelConfig, QueccConfig, VisionConfig
from quecc_jax.models.compressors.base import Features, RegionAttention
from quecc_jax.models.compressors.base_config import output_grid
from quecc_jax.models.compressors.build import make_compressor
from quecc_jax.models.compressors.quecc import DepthwiseConv, QueCC
from tests.golden_check import TOLERANCE, check, error
from tests.models.reference import softmax
from tests.tiny import random_like

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("quecc_*.npz"))
SMALL = QueCC(kernel=2, stride=2, width=8, heads=2)


def inputs(grid: int = 4, width: int = 8, text: int = 6, patches: int = 0) -> tuple[Any, ...]:
    """The shapes of (features, query); `patches` in place of the grid's."""
    n = patches or grid * grid
    single, multi, query = (
        jax.ShapeDtypeStruct(size, jnp.float32) for size in ((2, n, width), (2, n, 3 * width), (2, 1, text))
    )
    return Features(single, multi), query  # type: ignore[arg-type]


def shapes(module: nn.Module, *arrays) -> tuple:
    """(output, parameters) as shapes, without computing anything."""
    out, variables = jax.eval_shape(lambda *a: module.init_with_output(jax.random.key(0), *a), *arrays)
    return out, nn.meta.unbox(variables["params"])


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_outputs_and_all_gradients_equal_the_originals(path):
    errors = check(path)
    assert len(errors) > 20 and max(errors.values()) < TOLERANCE, errors


def test_the_golden_files_are_there_and_the_measure_can_fail():
    assert len(GOLDEN) == 2
    good = np.array([1.0, 2.0])
    assert error(good, good, 0.0) == 0.0
    assert error(good + 0.01, good, 0.0) > TOLERANCE
    assert error(good[:1], good, 0.0) == error(good * np.nan, good, 0.0) == math.inf


@given(st.integers(1, 30), st.integers(-1, 32), st.integers(-1, 32))
def test_geometry_is_a_divisor_of_the_grid_or_a_value_error(grid, kernel, stride):
    fits = 1 <= kernel <= grid and stride >= 1 and grid % ((grid - kernel) // stride + 1) == 0
    if fits:
        side = (grid - kernel) // stride + 1
        assert output_grid(grid, kernel, stride) == side and (side - 1) * stride + kernel <= grid
        assert QueccConfig(kernel=kernel, stride=stride).num_tokens(grid) == side**2
        return
    with pytest.raises(ValueError) as caught:
        output_grid(grid, kernel, stride)
    valid = [s for s in range(1, grid + 1) if grid % s == 0]
    for number in (f"kernel {kernel}", f"stride {stride}", f"{grid} x {grid} grid", f"strides {valid}"):
        assert number in str(caught.value)


@given(st.integers(1, 8).flatmap(lambda side: st.tuples(st.just(side), st.integers(1, 24 // side))))
def test_every_stride_that_divides_the_grid_gives_its_tokens(geometry):
    side, stride = geometry
    assert output_grid(side * stride, stride, stride) == side


@pytest.mark.parametrize(
    "grid, kernel, stride, tokens", [(4, 2, 2, 4), (4, 4, 4, 1), (4, 1, 1, 16), (6, 4, 2, 4)]
)
def test_the_module_returns_v_tokens_of_the_towers_width(grid, kernel, stride, tokens):
    module = make_compressor(
        ModelConfig(
            vision=VisionConfig(width=8), compressor=QueccConfig(kernel=kernel, stride=stride, heads=2)
        )
    )
    out, _ = shapes(module, *inputs(grid))
    assert out.shape == (2, tokens, 8) and out.dtype == jnp.float32


def test_misfits_are_value_errors_that_name_the_numbers():
    for module, arrays, message in [
        (QueCC(2, 2, 7, 2), inputs(width=7), "width 7 is not a multiple of 2 heads"),
        (QueCC(3, 1, 8, 2), inputs(grid=5), "kernel 3 and stride 1 give a 3 x 3 output, .* 5 x 5 grid"),
        (SMALL, inputs(patches=17), "17 patches"),
    ]:
        with pytest.raises(ValueError, match=message):
            shapes(module, *arrays)


def test_region_attention_is_multi_head_attention_with_every_projection_written_out():
    b, v, r, width, heads = 2, 3, 4, 6, 2
    d = width // heads
    rng = np.random.default_rng(0)
    queries, keys, values = (rng.normal(size=s) for s in ((b, v, width), (b, v, r, width), (b, v, r, width)))
    arrays = [x.astype(np.float32) for x in (queries, keys, values)]
    module: Any = RegionAttention(heads, jnp.float32)
    params = random_like(shapes(module, *arrays)[1])
    ours = module.apply({"params": params}, *arrays)

    flat = {k: np.asarray(x, np.float64) for k, x in params.items() if k != "out"}
    project = {
        name: lambda x, name=name: (
            x @ flat[f"{name}_kernel"].reshape(width, width) + flat[f"{name}_bias"].reshape(width)
        )
        for name in "qkv"
    }
    expected = np.zeros((b, v, width))
    for i in range(b):
        for j in range(v):
            q, k, w = project["q"](queries[i, j]), project["k"](keys[i, j]), project["v"](values[i, j])
            for h in range(heads):
                part = slice(h * d, (h + 1) * d)
                expected[i, j, part] = softmax(k[:, part] @ q[part] / math.sqrt(d)) @ w[:, part]
    expected = expected @ params["out"]["kernel"].reshape(width, width) + params["out"]["bias"]
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_compute_keeps_float32_parameters_and_stays_close():
    rough = QueCC(kernel=2, stride=2, width=8, heads=2, dtype=jnp.bfloat16)
    _, abstract = shapes(rough, *inputs())
    assert {x.dtype for x in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    params = random_like(abstract)
    rng = np.random.default_rng(1)
    arrays = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), inputs())
    exact, close = (jax.jit(m.apply)({"params": params}, *arrays) for m in (SMALL, rough))
    assert close.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    difference = np.abs(np.asarray(close, np.float32) - np.asarray(exact)).max()
    assert 0 < difference < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("kernel, stride", [(2, 2), (3, 3), (4, 1)])
def test_the_depthwise_convolution_sums_each_window(kernel, stride):
    rng = np.random.default_rng(2)
    x, weights = (rng.normal(size=s).astype(np.float32) for s in ((2, 6, 6, 4), (kernel, kernel, 1, 4)))
    params = {"kernel": weights, "bias": np.arange(4, dtype=np.float32)}
    ours = np.asarray(DepthwiseConv(kernel, stride, jnp.float32).apply({"params": params}, x))
    assert ours.shape[1] == ours.shape[2] == output_grid(6, kernel, stride)
    for i in range(ours.shape[1]):
        for j in range(ours.shape[2]):
            window = x[:, i * stride :, j * stride :][:, :kernel, :kernel]
            expected = np.einsum("bxyc,xyc->bc", window, weights[:, :, 0]) + params["bias"]
            np.testing.assert_allclose(ours[:, i, j], expected, rtol=1e-4, atol=1e-5)


def test_a_new_convolution_keeps_the_variance_of_what_it_reads():
    """Weights of variance 1 / k^2, which sum k^2 of them."""
    x = np.random.default_rng(0).normal(size=(4, 12, 12, 512)).astype(np.float32)
    made, params = DepthwiseConv(4, 4, jnp.float32).init_with_output(jax.random.key(0), x)
    kernel = nn.meta.unbox(params)["params"]["kernel"]
    np.testing.assert_allclose([np.var(kernel) * 16, np.var(made)], 1, rtol=0.1)
