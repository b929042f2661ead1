"""The decoder against LLaMA and Qwen2 in NumPy; packing, padding and the cache change nothing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.models.decoder import Cache, Decoder, empty_cache, unstack
from tests.models.decoders import ONES, PLACES, Family, S, close, family
from tests.models.reference import decode
from tests.tiny import MODEL

LLAMA = dataclasses.replace(MODEL.decoder, rope_theta=100.0)
"""Four heads on two key/value heads, an output matrix of its own, no biases."""
QWEN = dataclasses.replace(LLAMA, qkv_bias=True, tie_embeddings=True, kv_heads=1, norm_eps=1e-3)


@pytest.fixture(scope="module")
def llama() -> Family:
    return family(LLAMA)


@pytest.fixture(scope="module")
def qwen() -> Family:
    return family(QWEN)


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_the_decoder_equals_its_mathematics(name, request):
    made: Family = request.getfixturevalue(name)
    x = made.rows()
    hidden = made.forward(x, PLACES, ONES)
    for row in range(2):
        close(hidden[row], decode(made.params, made.config, x[row]))


def test_families_differ_in_the_parameters_they_should(llama, qwen):
    assert "head" in llama.params and "head" not in qwen.params
    for name in "qkv":
        assert "bias" not in llama.params["layers"][name] and "bias" in qwen.params["layers"][name]
    for made in (llama, qwen):
        assert "bias" not in made.params["layers"]["out"] and "bias" not in made.params["layers"]["up"]
        heads = [made.params["layers"][n]["kernel"].shape for n in "qkv"]
        c = made.config
        assert heads == [(2, 32, n, 8) for n in (c.heads, c.kv_heads, c.kv_heads)]


def test_tied_embeddings_are_the_output_matrix(llama, qwen):
    hidden = llama.rows(1)
    for made in (llama, qwen):
        model, variables = Decoder(made.config), {"params": made.params}
        matrix = made.params["embedding"].T if made is qwen else made.params["head"]
        close(model.apply(variables, hidden, method="logits"), hidden @ matrix)
        tokens = np.array([[3, 5]])
        np.testing.assert_array_equal(
            model.apply(variables, tokens, method="embed"), made.params["embedding"][tokens]
        )


def test_later_positions_do_not_reach_earlier_ones(llama):
    x = llama.rows()
    before = np.asarray(llama.forward(x, PLACES, ONES))
    for place in range(S):
        changed = x.copy()
        changed[:, place] += 1.0
        after = np.asarray(llama.forward(changed, PLACES, ONES))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place:] - before[:, place:]).max(axis=(0, 2)).min() > 1e-4


def test_packed_conversations_are_as_if_alone(qwen):
    x = qwen.rows()
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 3, 3, 3]], np.int32)
    positions = np.array([[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 2]], np.int32)
    hidden = np.asarray(qwen.forward(x, positions, segments))
    for row in range(2):
        for segment in range(1, segments[row].max() + 1):
            own = segments[row] == segment
            close(hidden[row, own], decode(qwen.params, qwen.config, x[row, own]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(llama, side):
    x, lengths = llama.rows(), (4, 5)
    segments, positions = np.zeros((2, S), np.int32), np.zeros((2, S), np.int32)
    real = [slice(0, n) if side == "right" else slice(S - n, S) for n in lengths]
    for row, (n, own) in enumerate(zip(lengths, real, strict=True)):
        segments[row, own], positions[row, own] = 1, np.arange(n)
    hidden = np.asarray(llama.forward(x, positions, segments))
    assert np.isfinite(hidden).all()
    for row, own in enumerate(real):
        close(hidden[row, own], decode(llama.params, llama.config, x[row, own]))


def test_only_differences_of_positions_matter(llama):
    x = llama.rows()
    close(llama.forward(x, PLACES + 7, ONES), llama.forward(x, PLACES, ONES))
    spread = np.asarray(llama.forward(x, PLACES * 2, ONES)) - np.asarray(llama.forward(x, PLACES, ONES))
    assert np.abs(spread[:, 1:]).max() > 1e-2


def test_the_cache_at_every_split_equals_one_pass(qwen):
    """Row 0 is padded at the end of its prompt, so its later tokens follow a hole in the cache."""
    x = qwen.rows()
    model, params = Decoder(qwen.config, unrolled=True), unstack(qwen.params)

    @jax.jit
    def extend(x: jax.Array, positions: jax.Array, segments: jax.Array, cache: Cache) -> Any:
        return model.apply({"params": params}, x, positions, segments, cache)

    whole = np.stack([decode(qwen.params, qwen.config, row) for row in x])
    for split in range(1, S):
        cache = empty_cache(qwen.config, 2, S + 3)
        first, cache = extend(x[:, :split], PLACES[:, :split], ONES[:, :split], cache)
        second, cache = extend(x[:, split:], PLACES[:, split:], ONES[:, split:], cache)
        close(np.concatenate([first, second], axis=1), whole)
        assert int(cache.length) == S and [k.shape for k in cache.keys] == 2 * [(2, 1, S + 3, 8)]

    cache, hidden = empty_cache(qwen.config, 2, S + 1), []
    segments = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
    first, cache = extend(x[:, :3], PLACES[:, :3] * segments, segments, cache)
    rest = np.array([2, 3])
    for step in range(3):
        token = np.stack([x[0, 2 + step], x[1, 3 + step]])[:, None]
        made, cache = extend(token, (rest + step)[:, None].astype(np.int32), ONES[:, :1], cache)
        hidden.append(made[:, 0])
    close(np.concatenate([first[0, :2], [h[0] for h in hidden]]), whole[0, :5])
    close(np.concatenate([first[1], [h[1] for h in hidden]]), whole[1])


def test_a_bfloat16_cache_stays_close(llama):
    x, model = llama.rows(), Decoder(LLAMA, jnp.bfloat16, unrolled=True)
    cache = empty_cache(LLAMA, 2, S, jnp.bfloat16)
    hidden, cache = jax.jit(model.apply)({"params": unstack(llama.params)}, x, PLACES, ONES, cache)
    assert {hidden.dtype, *(a.dtype for a in (*cache.keys, *cache.values))} == {jnp.dtype(jnp.bfloat16)}
    exact = np.asarray(llama.forward(x, PLACES, ONES))
    assert 0 < np.abs(np.asarray(hidden, np.float32) - exact).max() < 0.1 * np.abs(exact).max()


def test_unrolled_layers_compute_what_scanned_ones_do(qwen):
    x = qwen.rows()
    params = unstack(qwen.params)
    assert unstack(params) is params and "layers" not in params
    hidden, _ = Decoder(qwen.config, unrolled=True).apply({"params": params}, x, PLACES, ONES)
    np.testing.assert_allclose(hidden, qwen.forward(x, PLACES, ONES), rtol=1e-5, atol=1e-5)


def test_a_scanned_decoder_takes_no_cache(llama):
    with pytest.raises(ValueError, match="unrolled"):
        Decoder(LLAMA).apply({"params": llama.params}, llama.rows(), PLACES, ONES, empty_cache(LLAMA, 2, S))
