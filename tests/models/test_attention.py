"""Every kernel against the mathematics, and which of them a program gets on which platform."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig
from quecc_jax.errors import UserError
from quecc_jax.models import attention as module
from quecc_jax.models.attention import (
    NO_LIMIT,
    PLAIN,
    Scores,
    attention,
    blocks,
    causal,
    splash_attention,
    xla_attention,
)
from quecc_jax.sharding import RULES, make_mesh
from tests.jax_shim import pretend_cudnn
from tests.models.reference import attend


def inputs(rows=2, length=40, heads=4, groups=2, width=16, seed=0, dtype=jnp.float32):
    """Random q, k, v, a weight for the outputs, and a mask: row 0 packed and padded, row 1 one long one."""
    rng = np.random.default_rng(seed)
    q, k, v, w = (
        jnp.array(rng.normal(size=(rows, length, n, width)), dtype) for n in (heads, groups, groups, heads)
    )
    segments = np.ones((rows, length), np.int32)
    segments[0, length // 3 :] = 2
    segments[0, -length // 4 :] = 0
    positions = np.zeros_like(segments)
    for value in range(3):
        positions += (segments == value) * (np.cumsum(segments == value, axis=1) - 1)
    return q, k, v, w, causal(jnp.array(segments), jnp.array(positions))


def both_ways(compute, q, k, v, w, mask, **options):
    """Outputs and the gradients of q, k and v, of real places alone."""
    weight = w * (mask.q_segments > 0)[:, :, None, None]

    def loss(q, k, v):
        out = compute(q, k, v, mask, **options)
        return jnp.sum(out.astype(jnp.float32) * weight), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out * (weight != 0), *grads)]


def errors(ours, exact):
    """Largest difference of each array relative to the largest expected number."""
    return np.array([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, exact, strict=True)])


def close(ours, expected, tolerance):
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("window", [None, 3])
def test_xla_equals_the_mathematics(window):
    q, k, v, _, mask = inputs(length=9, width=4)
    slopes = jnp.array([0.5, 0.25, 0.125, 0.0625])
    out = xla_attention(q, k, v, mask._replace(window=window, slopes=slopes))
    segments, positions = np.asarray(mask.q_segments), np.asarray(mask.q_positions)
    for row in range(2):
        distance = positions[row][:, None] - positions[row]
        allowed = (segments[row][:, None] == segments[row]) & (distance >= 0) & (distance < (window or 99))
        for h in range(4):
            a, b, c = (np.asarray(x[row, :, i], np.float64) for x, i in ((q, h), (k, h // 2), (v, h // 2)))
            expected = attend(a, b, c, allowed, -float(slopes[h]) * distance)
            np.testing.assert_allclose(out[row, :, h], expected, rtol=1e-4, atol=1e-5)


def test_without_a_mask_everything_is_seen():
    q, k, v, *_ = inputs(length=5)
    ours, library = attention(q, k, v, None), jax.nn.dot_product_attention(q, k, v)
    np.testing.assert_allclose(ours, library, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length, groups, window", [(40, 4, None), (128, 1, 5), (300, 2, 130)])
def test_splash_equals_xla_forward_and_backward(monkeypatch, length, groups, window):
    """Packed and padded rows, grouped heads, windows, one block and several, whole and filled up."""
    monkeypatch.setattr(module, "BLOCK", 128)
    q, k, v, w, mask = inputs(length=length, groups=groups)
    mask = mask._replace(window=window)
    splash = both_ways(splash_attention, q, k, v, w, mask, interpret=True)
    close(splash, both_ways(xla_attention, q, k, v, w, mask), 2e-5)


def test_splash_in_bfloat16_is_as_close_to_the_truth_as_xla():
    q, k, v, w, mask = inputs(length=60, dtype=jnp.bfloat16)
    a, b, c, weight = (x.astype(jnp.float32) for x in (q, k, v, w))
    exact = both_ways(xla_attention, a, b, c, weight, mask)

    def error(compute, **options):
        return errors(both_ways(compute, q, k, v, weight, mask, **options), exact)

    xla, splash = error(xla_attention), error(splash_attention, interpret=True)
    assert (splash < np.maximum(2 * xla, 2**-7)).all() and xla.max() < 0.03


@pytest.mark.parametrize("mesh", [MeshConfig(2, 2, 2), MeshConfig(1, 4, 2)])
def test_splash_splits_rows_and_heads_over_a_mesh(mesh):
    q, k, v, w, mask = inputs(rows=4)
    expected = both_ways(xla_attention, q, k, v, w, mask)
    with jax.set_mesh(make_mesh(mesh)), nn.logical_axis_rules(RULES):
        ours = both_ways(attention, q, k, v, w, mask, kernel="splash")
        program = jax.jit(lambda q, k, v: attention(q, k, v, mask, "splash")).lower(q, k, v).as_text()
    close(ours, expected, 2e-5)
    assert f"tensor<{4 // (mesh.data * mesh.fsdp)}x2x128x16xf32>" in program


def test_rows_that_do_not_divide_over_the_mesh_stay_with_xla():
    q, k, v, w, mask = inputs(rows=3)
    with jax.set_mesh(make_mesh(MeshConfig(2, 2, 2))), nn.logical_axis_rules(RULES):
        ours = both_ways(attention, q, k, v, w, mask, kernel="splash")
    close(ours, both_ways(xla_attention, q, k, v, w, mask), 1e-5)


@pytest.mark.parametrize(
    "length, expected",
    [
        (1, (128, 128)),
        (128, (128, 128)),
        (129, (256, 256)),
        (512, (512, 512)),
        (640, (384, 768)),
        (2048, (512, 2048)),
        (2049, (512, 2560)),
        (4096, (512, 4096)),
    ],
)
def test_blocks_hold_any_length(length, expected):
    assert blocks(length) == expected


def kernels(platform, monkeypatch, kernel="auto", scores=PLAIN, **changes):
    """The kernels that one call to `attention` is answered with, as if made for a platform."""
    made = []

    def stand_in(name):
        def record(q, *_, **__):
            made.append(name)
            return q

        monkeypatch.setattr(module, f"{name}_attention", record)

    for name in ("splash", "cudnn", "xla"):
        stand_in(name)
    device = jax.sharding.AbstractDevice("some device", None, platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), (jax.sharding.AxisType.Auto,), abstract_device=device)
    q, k, v, _, mask = inputs()
    with jax.sharding.use_abstract_mesh(mesh):
        attention(q, k, v, mask._replace(**changes), kernel, scores)
    return made


@pytest.mark.parametrize("platform, expected", [("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "xla")])
def test_auto_goes_by_the_platform(platform, expected, monkeypatch):
    assert kernels(platform, monkeypatch) == [expected]
    assert kernels(platform, monkeypatch, "xla") == ["xla"]
    assert kernels(platform, monkeypatch, "splash") == ["splash"]


@pytest.mark.parametrize(
    "change, platforms, told",
    [
        ({"slopes": jnp.ones(4)}, ("tpu", "gpu"), "ALiBi adds to every logit"),
        ({"window": jnp.array(3)}, ("tpu",), "nothing says which windows layers have"),
        (dict.fromkeys(("k_segments", "k_positions"), jnp.zeros((2, 40), jnp.int32)), ("tpu", "gpu"), ""),
    ],
)
def test_what_other_kernels_do_not_take_is_left_to_xla_and_told_once(
    change, platforms, told, monkeypatch, capsys
):
    module._tell.cache_clear()
    for platform in (*platforms, "cpu"):
        assert kernels(platform, monkeypatch, **change) == ["xla"]
        assert kernels(platform, monkeypatch, **change) == ["xla"]
    names = {"tpu": "splash", "gpu": "cudnn"}
    expected = [f"attention is XLA's, not {names[p]}: {told}" for p in platforms] if told else []
    assert capsys.readouterr().err.splitlines() == expected


def test_a_soft_cap_is_splash_attentions_and_xlas(monkeypatch, capsys):
    module._tell.cache_clear()
    capped = Scores(softcap=2.0)
    assert kernels("tpu", monkeypatch, scores=capped) == ["splash"]
    assert kernels("gpu", monkeypatch, scores=capped) == ["xla"]
    assert "not cudnn: it has no soft cap" in capsys.readouterr().err
    assert kernels("gpu", monkeypatch, scores=Scores(scale=0.3)) == ["cudnn"]


def test_one_of_two_windows_is_one_of_two_kernels(monkeypatch):
    """Two are compiled where both hide something of a row, or one does."""
    window, one = jnp.array(3), (3, NO_LIMIT)
    assert kernels("tpu", monkeypatch, window=window, windows=one) == 2 * ["splash"]
    assert kernels("tpu", monkeypatch, window=window, windows=(99, NO_LIMIT)) == ["splash"]
    # Its mask is an array anyway.
    assert kernels("gpu", monkeypatch, window=window, windows=one) == ["cudnn"]


@pytest.mark.parametrize("window", [3, NO_LIMIT])
def test_a_window_that_is_known_late_equals_one_that_is_known(window):
    q, k, v, w, mask = inputs()
    expected = both_ways(xla_attention, q, k, v, w, mask._replace(window=window))

    def late(q, k, v, mask, number):
        return attention(q, k, v, mask._replace(window=number, windows=(3, NO_LIMIT)), "splash")

    def run(number):
        return both_ways(functools.partial(late, number=number), q, k, v, w, mask)

    close(run(jnp.int32(window)), expected, 2e-5)


@pytest.mark.parametrize("scores", [Scores(0.2), Scores(None, 1.5), Scores(0.7, 1.5)])
def test_scores_of_another_kind(scores):
    q, k, v, w, mask = inputs(length=9, width=4)
    out = xla_attention(q, k, v, mask, scores)
    scalar = (scores.scale or 0.5) ** -2
    positions, segments = np.asarray(mask.q_positions), np.asarray(mask.q_segments)
    for row in range(2):
        distance = positions[row][:, None] - positions[row]
        allowed = (segments[row][:, None] == segments[row]) & (distance >= 0)
        for h in range(4):
            a, b, c = (np.asarray(x[row, :, i], np.float64) for x, i in ((q, h), (k, h // 2), (v, h // 2)))
            expected = attend(a, b, c, allowed, scalar=scalar, cap=scores.softcap)
            np.testing.assert_allclose(out[row, :, h], expected, rtol=1e-4, atol=1e-5)
    splash = both_ways(splash_attention, q, k, v, w, mask, scores=scores, interpret=True)
    close(splash, both_ways(xla_attention, q, k, v, w, mask, scores=scores), 2e-5)


def test_cudnn_by_name_says_why_it_cannot(monkeypatch):
    q, k, v, _, mask = inputs()
    with pytest.raises(
        UserError, match=r"^model.attention_kernel cudnn: takes .*, not float32; use auto or xla$"
    ):
        attention(q, k, v, mask, "cudnn")
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    with pytest.raises(UserError, match="cuDNN is not detected"):
        attention(q, k, v, mask, "cudnn")
    pretend_cudnn(monkeypatch, 91000)
    with pytest.raises(UserError, match="head dim must be <= 128"):
        attention(jnp.tile(q, 9), jnp.tile(k, 9), jnp.tile(v, 9), mask, "cudnn")
