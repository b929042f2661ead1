"""Rotary frequencies and ALiBi slopes against numbers worked out by hand, masks by brute force."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.config import DecoderConfig, RopeScaling, RunConfig
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.models.attention import MaskSpec, dense_bias, dense_mask
from quecc_jax.models.rope import alibi_slopes, rotary_angles, rotary_frequencies, rotate

BASE = DecoderConfig(width=16, heads=2, kv_heads=2, rope_theta=16.0)
"""Heads of eight channels: four pairs, frequencies 1, 1/2, 1/4 and 1/8."""


def scaled(**settings) -> DecoderConfig:
    return dataclasses.replace(BASE, rope_scaling=RopeScaling(**settings))


def test_plain_frequencies_fall_geometrically():
    np.testing.assert_allclose(rotary_frequencies(BASE, 10), [1, 0.5, 0.25, 0.125], rtol=1e-6)


def test_linear_scaling_divides_every_frequency():
    linear = scaled(kind="linear", factor=4.0)
    np.testing.assert_allclose(rotary_frequencies(linear, 10), [0.25, 0.125, 0.0625, 0.03125], rtol=1e-6)


def test_llama3_scaling_keeps_fast_pairs_and_blends_between():
    """Within 50 positions the pairs make 8.0, 4.0, 2.0 and 1.0 turns, all a little less."""
    config = scaled(kind="llama3", factor=5.0, slow_turns=1.0, fast_turns=3.5, original_length=50)
    kept = (50 / (2 * math.pi) / 4 - 1) / 2.5
    expected = [1, 0.5, 0.25 * kept + 0.05 * (1 - kept), 0.025]
    np.testing.assert_allclose(rotary_frequencies(config, 10), expected, rtol=1e-6)


def test_longrope_has_factors_for_short_and_for_long_rows():
    config = scaled(
        kind="longrope",
        original_length=10,
        short_factors=(1.0, 2.0, 4.0, 8.0),
        long_factors=(2.0, 2.0, 2.0, 0.5),
        attention_factor=1.5,
    )
    np.testing.assert_allclose(rotary_frequencies(config, 10), [1, 1 / 4, 1 / 16, 1 / 64], rtol=1e-6)
    np.testing.assert_allclose(rotary_frequencies(config, 11), [1 / 2, 1 / 4, 1 / 8, 1 / 4], rtol=1e-6)
    cos, sin = rotary_angles(jnp.array([[0, 4]]), config, 10)
    angles = np.array([4, 1, 1 / 4, 1 / 16])
    np.testing.assert_allclose(cos[0], [[1.5] * 4, 1.5 * np.cos(angles)], rtol=1e-5)
    np.testing.assert_allclose(sin[0], [[0.0] * 4, 1.5 * np.sin(angles)], rtol=1e-5)


def test_partial_rotation_leaves_the_rear_channels_alone():
    config = dataclasses.replace(BASE, rope_fraction=0.5)
    x = jnp.arange(1.0, 9.0).reshape(1, 1, 1, 8)
    angles = rotary_angles(jnp.array([[3]]), config, 4)
    turned = np.asarray(rotate(x, angles))[0, 0, 0]
    np.testing.assert_array_equal(turned[4:], [5, 6, 7, 8])
    # Two pairs, (1, 3) and (2, 4), with frequencies 1 and 16^(-1/2).
    for pair, angle in ((0, 3.0), (1, 0.75)):
        expected = complex(1 + pair, 3 + pair) * np.exp(1j * angle)
        ours = complex(turned[pair], turned[pair + 2])
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "heads, bias_max, exponents",
    [
        (8, 8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (4, 8, [2, 4, 6, 8]),
        (4, 16, [4, 8, 12, 16]),
        (6, 8, [2, 4, 6, 8, 1, 3]),
        (3, 8, [4, 8, 2]),
        (1, 8, [8]),
    ],
)
def test_alibi_slopes_are_powers_of_one_half(heads, bias_max, exponents):
    np.testing.assert_array_equal(alibi_slopes(heads, bias_max), [2.0**-e for e in exponents])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_masks_and_biases_by_brute_force(data):
    """Rows of packed conversations and padding in any order, read after `held` earlier places."""
    total, held = 7, data.draw(st.sampled_from([0, 4]))
    kinds = st.lists(st.integers(0, 2), min_size=total, max_size=total)
    segments = np.array([data.draw(kinds), data.draw(kinds)])
    positions = np.zeros_like(segments)
    for row in range(2):
        for i in range(total):
            positions[row, i] = (segments[row, :i] == segments[row, i]).sum()
    window = data.draw(st.none() | st.integers(1, 10))
    slopes = data.draw(st.none() | st.just(np.array([0.5, 0.25], np.float32)))
    spec = MaskSpec(
        q_segments=jnp.array(segments[:, held:]),
        q_positions=jnp.array(positions[:, held:]),
        k_segments=jnp.array(segments) if held else None,
        k_positions=jnp.array(positions) if held else None,
        window=None if window is None else jnp.array(window),
        slopes=None if slopes is None else jnp.array(slopes),
    )
    mask, bias = np.asarray(dense_mask(spec)), dense_bias(spec)
    assert mask.shape == (2, 1, total - held, total)
    assert (bias is None) == (slopes is None)
    for row in range(2):
        for q in range(held, total):
            own = [k for k in range(q + 1) if segments[row, k] == segments[row, q]]
            seen = own if window is None else own[-window:]
            assert np.flatnonzero(mask[row, 0, q - held]).tolist() == seen
            if slopes is not None and bias is not None:
                back = np.arange(len(own))[::-1]
                np.testing.assert_array_equal(
                    np.asarray(bias)[row, :, q - held, own].T, -slopes[:, None] * back
                )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rope_fraction": 0.1}, "rope_fraction 0.1 rotates 0 of a head's 8 channels"),
        ({"rope_fraction": 0.4}, "rope_fraction 0.4 rotates 3 of a head's 8 channels"),
        ({"rope_scaling": RopeScaling("llama3")}, "original_length 0 is not positive"),
        ({"rope_scaling": RopeScaling("linear", factor=0.0)}, "factor is 0 but must be above 0"),
        ({"rope_scaling": RopeScaling("llama3", slow_turns=4.0, original_length=8)}, "slow_turns 4.0"),
        (
            {"rope_scaling": RopeScaling("longrope", original_length=8, short_factors=(1.0,) * 4)},
            "4 short_factors and 0 long_factors for the 4 rotated pairs",
        ),
        ({"rope_scaling": RopeScaling("linear"), "positions": "alibi"}, "needs decoder.positions rotary"),
        ({"window": -1}, "window is -1 but must be at least 0"),
        ({"full_layers": 99}, "full_layers 99"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(change, message):
    run = RunConfig()
    validate(run)
    decoder = dataclasses.replace(BASE, **change)
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(run, model=dataclasses.replace(run.model, decoder=decoder)))


def test_plain_decoders_make_no_bias_and_no_window():
    """The common case pays for neither: its program holds no array of logits besides the attention's."""
    zeros = jnp.zeros((1, 4), jnp.int32)
    spec = MaskSpec(zeros, zeros, zeros, zeros)
    program = str(jax.make_jaxpr(lambda s: (dense_mask(s), dense_bias(s)))(spec))
    assert "sub" not in program and "f32" not in program
