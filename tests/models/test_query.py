"""Encoders of the question, each against a straightforward form, and what they leave alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import DecoderConfig, QueryConfig
from quecc_jax.geometry import query_width
from quecc_jax.models.decoder import unstack
from quecc_jax.models.vlm import VLM
from quecc_jax.query_config import ClipTextConfig
from tests.models.reference import clip_text, decode
from tests.tiny import MODEL, random_batch, random_params, run

CONFIG = run(batch_size=3)
DEEP = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, depth=3))
PARAMS = random_params(run({"decoder": DEEP.decoder}, batch_size=3))
BATCH = random_batch(CONFIG, pictures=[0, 1, 2])


def encode(model: Any, params: Any, queries: Any, lengths: Any, unrolled: bool = False) -> np.ndarray:
    apply = jax.jit(lambda p, *a: VLM(model, unrolled).apply({"params": p}, *a, method=VLM.encode_query))
    return np.asarray(apply(params, queries, lengths))


def with_query(model: Any, **settings: Any) -> Any:
    return dataclasses.replace(model, query=QueryConfig(**settings))


def asked() -> list[tuple[int, int, np.ndarray]]:
    """(row, picture, ids) of every question of the batch."""
    lengths = BATCH.query_lengths
    return [(r, p, BATCH.queries[r, p, : lengths[r, p]]) for r, p in np.argwhere(lengths > 0)]


@pytest.mark.parametrize("layer", [1, 2])
def test_an_early_exit_is_the_normed_state_after_its_layers(layer):
    made = encode(with_query(DEEP, encoder="early_exit", layer=layer), PARAMS, BATCH.queries,
                  BATCH.query_lengths)
    short, table = dataclasses.replace(DEEP.decoder, depth=layer), PARAMS["decoder"]["embedding"]
    for row, picture, ids in asked():
        np.testing.assert_allclose(made[row, picture], decode(PARAMS["decoder"], short, table[ids])[-1],
                                   rtol=1e-3, atol=1e-4)
    loose = PARAMS | {"decoder": unstack(PARAMS["decoder"])}
    np.testing.assert_allclose(
        encode(with_query(DEEP, encoder="early_exit", layer=layer), loose, BATCH.queries,
               BATCH.query_lengths, unrolled=True), made, rtol=1e-4, atol=1e-5)  # fmt: skip


def test_an_exit_after_all_layers_is_the_decoder_to_the_bit():
    whole = encode(DEEP, PARAMS, BATCH.queries, BATCH.query_lengths)
    last = with_query(DEEP, encoder="early_exit", layer=3)
    np.testing.assert_array_equal(encode(last, PARAMS, BATCH.queries, BATCH.query_lengths), whole)
    assert np.abs(encode(with_query(DEEP, encoder="early_exit", layer=2), PARAMS, BATCH.queries,
                         BATCH.query_lengths) - whole).max() > 0.1  # fmt: skip


def test_an_early_exit_sees_each_layer_s_window():
    decoder = DecoderConfig(vocab_size=64, width=32, depth=4, heads=4, kv_heads=4, mlp_width=48, window=2,
                            full_layers=1)
    model = with_query(dataclasses.replace(MODEL, decoder=decoder), encoder="early_exit", layer=3)
    params = random_params(run({"decoder": decoder}, batch_size=3))
    made = encode(model, params, BATCH.queries, BATCH.query_lengths)
    first = jax.tree.map(lambda leaf: leaf[:3], params["decoder"]["layers"])
    cut = params | {"decoder": params["decoder"] | {"layers": first}}
    whole = dataclasses.replace(model, query=QueryConfig(), decoder=dataclasses.replace(decoder, depth=3))
    np.testing.assert_allclose(made, encode(whole, cut, BATCH.queries, BATCH.query_lengths), rtol=1e-5,
                               atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_the_mean_over_real_tokens(dtype):
    model = with_query(dataclasses.replace(MODEL, dtype=dtype), encoder="embeddings")
    made = encode(model, PARAMS, BATCH.queries, BATCH.query_lengths)
    assert made.dtype == jnp.dtype(dtype)
    for row, picture, ids in asked():
        table = np.asarray(PARAMS["decoder"]["embedding"].astype(dtype), np.float64)
        expected = table[ids].mean(axis=0)
        np.testing.assert_allclose(made[row, picture].astype(np.float64), expected, atol=1e-6, rtol=5e-3)


TEXT = ClipTextConfig(vocab_size=64, positions=6, width=24, depth=2, heads=3, mlp_width=40, projection=20)
WITH_TEXT = run({"query": QueryConfig("clip_text", text=TEXT)}, batch_size=3)


@pytest.mark.parametrize("projection, activation", [(20, "quick_gelu"), (0, "gelu")])
def test_clip_s_text_tower_gives_the_state_of_the_end_token(projection, activation):
    text = dataclasses.replace(TEXT, projection=projection, activation=activation)
    model = with_query(MODEL, encoder="clip_text", text=text)
    params = random_params(run({"query": model.query}, batch_size=3))
    made = encode(model, params, BATCH.queries, BATCH.query_lengths)
    assert made.shape[-1] == query_width(model) == (projection or 24)
    for row, picture, ids in asked():
        expected = clip_text(params["text"], text, ids)
        np.testing.assert_allclose(made[row, picture], expected, rtol=1e-3, atol=1e-4)
    # Longer padding than the tower has positions, as a bucket of generation may bring.
    wide = np.pad(BATCH.queries, ((0, 0), (0, 0), (0, 2)), constant_values=9)
    np.testing.assert_array_equal(encode(model, params, wide, BATCH.query_lengths), made)


@pytest.mark.parametrize("query", [
    {"encoder": "early_exit", "layer": 1}, {"encoder": "embeddings"}, {"encoder": "clip_text", "text": TEXT}])
def test_padding_changes_nothing_an_empty_question_is_finite_and_no_gradient_passes(query):
    model = with_query(MODEL, **query)
    params = random_params(WITH_TEXT)
    queries, lengths = np.array(BATCH.queries), BATCH.query_lengths
    made = encode(model, params, queries, lengths)
    assert np.isfinite(made).all() and (lengths == 0).any()
    beyond = np.arange(queries.shape[-1]) >= lengths[..., None]
    other = encode(model, params, np.where(beyond, 63 - queries, queries), lengths)
    np.testing.assert_array_equal(other[lengths > 0], made[lengths > 0])

    def total(params: Any) -> Any:
        feature: Any = VLM(model).apply({"params": params}, queries, lengths, method=VLM.encode_query)
        return jnp.sum(feature**2)

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.grad(total)(params)))
