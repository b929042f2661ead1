"""Encoders of the question, each against a straightforward form, and what they leave alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import DecoderConfig, QueryConfig
from quecc_jax.config.query import ClipTextConfig
from quecc_jax.config.shapes import query_width
from quecc_jax.data.batch import Batch
from quecc_jax.models.decoder import unstack
from quecc_jax.models.vlm import VLM
from tests.models.reference import clip_text, decode
from tests.tiny import MODEL, asked, random_batch, random_params, run

CONFIG = run(batch_size=3)
DEEP = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, depth=3))
PARAMS = random_params(run({"decoder": DEEP.decoder}, batch_size=3))
BATCH = random_batch(CONFIG, images=[0, 1, 2])


def encode(model: Any, params: Any, batch: Batch = BATCH, unrolled: bool = False) -> np.ndarray:
    apply = jax.jit(lambda p, *a: VLM(model, unrolled).apply({"params": p}, *a, method=VLM.encode_query))
    return np.asarray(apply(params, batch.queries, batch.query_segments, batch.query_ends))


def with_query(model: Any, **settings: Any) -> Any:
    return dataclasses.replace(model, query=QueryConfig(**settings))


@pytest.mark.parametrize("layer", [1, 2])
def test_an_early_exit_is_the_normed_state_after_its_layers(layer):
    made = encode(with_query(DEEP, encoder="early_exit", layer=layer), PARAMS)
    short, table = dataclasses.replace(DEEP.decoder, depth=layer), PARAMS["decoder"]["embedding"]
    for row, image, ids in asked(BATCH):
        np.testing.assert_allclose(
            made[row, image], decode(PARAMS["decoder"], short, table[ids])[-1], rtol=1e-3, atol=1e-4
        )
    loose = PARAMS | {"decoder": unstack(PARAMS["decoder"])}
    loosely = encode(with_query(DEEP, encoder="early_exit", layer=layer), loose, unrolled=True)
    np.testing.assert_allclose(loosely, made, rtol=1e-4, atol=1e-5)


def test_an_exit_after_all_layers_is_the_decoder_to_the_bit():
    whole = encode(DEEP, PARAMS)
    last = with_query(DEEP, encoder="early_exit", layer=3)
    np.testing.assert_array_equal(encode(last, PARAMS), whole)
    early = encode(with_query(DEEP, encoder="early_exit", layer=2), PARAMS)
    assert np.abs(early - whole).max() > 0.1


def test_an_early_exit_sees_each_layer_s_window():
    decoder = DecoderConfig(
        vocab_size=64, width=32, depth=4, heads=4, kv_heads=4, mlp_width=48, window=2, full_layers=1
    )
    model = with_query(dataclasses.replace(MODEL, decoder=decoder), encoder="early_exit", layer=3)
    params = random_params(run({"decoder": decoder}, batch_size=3))
    made = encode(model, params)
    first = jax.tree.map(lambda leaf: leaf[:3], params["decoder"]["layers"])
    cut = params | {"decoder": params["decoder"] | {"layers": first}}
    whole = dataclasses.replace(model, query=QueryConfig(), decoder=dataclasses.replace(decoder, depth=3))
    np.testing.assert_allclose(made, encode(whole, cut), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_the_mean_over_real_tokens(dtype):
    model = with_query(dataclasses.replace(MODEL, dtype=dtype), encoder="embeddings")
    made = encode(model, PARAMS)
    assert made.dtype == jnp.dtype(dtype)
    for row, image, ids in asked(BATCH):
        table = np.asarray(PARAMS["decoder"]["embedding"].astype(dtype), np.float64)
        expected = table[ids].mean(axis=0)
        np.testing.assert_allclose(made[row, image].astype(np.float64), expected, atol=1e-6, rtol=5e-3)


TEXT = ClipTextConfig(vocab_size=64, positions=6, width=24, depth=2, heads=3, mlp_width=40, projection=20)
WITH_TEXT = run({"query": QueryConfig("clip_text", text=TEXT)}, batch_size=3)


@pytest.mark.parametrize("projection, activation", [(20, "quick_gelu"), (0, "gelu")])
def test_clip_s_text_tower_gives_the_state_of_the_end_token(projection, activation):
    text = dataclasses.replace(TEXT, projection=projection, activation=activation)
    model = with_query(MODEL, encoder="clip_text", text=text)
    params = random_params(run({"query": model.query}, batch_size=3))
    made = encode(model, params)
    assert made.shape[-1] == query_width(model) == (projection or 24)
    for row, image, ids in asked(BATCH):
        expected = clip_text(params["text"], text, ids)
        np.testing.assert_allclose(made[row, image], expected, rtol=1e-3, atol=1e-4)
    # Longer rows than the tower has positions, as several questions and padding make them.
    assert BATCH.queries.shape[1] > text.positions
    wide = BATCH._replace(
        queries=np.pad(BATCH.queries, ((0, 0), (0, 2)), constant_values=9),
        query_segments=np.pad(BATCH.query_segments, ((0, 0), (0, 2))),
    )
    np.testing.assert_allclose(encode(model, params, wide), made, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "query",
    [
        {"encoder": "early_exit", "layer": 1},
        {"encoder": "embeddings"},
        {"encoder": "clip_text", "text": TEXT},
    ],
)
def test_padding_changes_nothing_an_empty_question_is_finite_and_no_gradient_passes(query):
    model = with_query(MODEL, **query)
    params = random_params(WITH_TEXT)
    made, present = encode(model, params), BATCH.query_ends >= 0
    assert np.isfinite(made).all() and not present.all()
    other = np.where(BATCH.query_segments == 0, 63 - BATCH.queries, BATCH.queries)
    padded = encode(model, params, BATCH._replace(queries=other))
    np.testing.assert_array_equal(padded[present], made[present])

    def total(params: Any) -> Any:
        asking = BATCH.queries, BATCH.query_segments, BATCH.query_ends
        feature: Any = VLM(model).apply({"params": params}, *asking, method=VLM.encode_query)
        return jnp.sum(feature**2)

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.grad(total)(params)))
