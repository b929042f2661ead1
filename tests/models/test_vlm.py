"""The whole model: the query's pass, the splice, and what may reach what."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import NoneConfig, PixelConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.config.shapes import hidden_indices
from quecc_jax.data.batch import Batch
from quecc_jax.data.images import normalise
from quecc_jax.models.vlm import VLM
from tests.models.reference import affine, decode, gelu
from tests.tiny import MODEL, RUN, asked, random_batch, random_params

CONFIG = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, batch_size=3))
V = MODEL.visual_tokens


class Made(NamedTuple):
    """Everything the model computes about a batch."""

    query: Any
    """[B, I, H]"""
    visual: Any
    """[B, I, V, M]"""
    inputs: Any
    """[B, S, M]"""
    hidden: Any
    """[B, S, M]"""


def parts(model: VLM, batch: Batch) -> Made:
    query = model.encode_query(batch.queries, batch.query_segments, batch.query_ends)
    return Made(query, model.visual_tokens(batch), model.splice(batch), model(batch))


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def compute(params):
    """Batch -> Made, compiled once."""
    run = jax.jit(lambda batch: VLM(MODEL).apply({"params": params}, batch, method=parts))
    return lambda batch: jax.device_get(run(batch._replace(ids=None)))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Rows with no, one and two images; room for two."""
    return random_batch(CONFIG, images=[0, 1, 2])


@pytest.fixture(scope="module")
def made(compute, batch) -> Made:
    return compute(batch)


def changed(batch: Batch, field: str, row: int, image: int) -> Batch:
    """The batch with other pixels or another query of one image."""
    array, there = np.array(getattr(batch, field)), (row, image)
    if field == "queries":
        there = (row, batch.query_segments[row] == batch.query_segments[row, batch.query_ends[row, image]])
    array[there] = 255 - array[there] if field == "pixels" else 1 + array[there] % 62
    return batch._replace(**{field: array})


def moved(before: np.ndarray, after: np.ndarray) -> list[bool]:
    """Which rows changed."""
    return [bool(np.abs(a - b).max() > 1e-5) for a, b in zip(before, after, strict=True)]


def test_a_query_is_the_final_hidden_state_of_its_last_real_token(params, batch, made):
    table = params["decoder"]["embedding"]
    for row, image, ids in asked(batch):
        expected = decode(params["decoder"], MODEL.decoder, table[ids])[-1]
        np.testing.assert_allclose(made.query[row, image], expected, rtol=1e-3, atol=1e-4)
    assert len({len(ids) for _, _, ids in asked(batch)}) > 1


def test_every_image_fills_its_own_slots_and_text_keeps_its_embedding(params, batch, made):
    flat, table = made.visual.reshape(3, 2 * V, -1), params["decoder"]["embedding"]
    seen = 0
    for row in range(3):
        for place in range(batch.tokens.shape[1]):
            slot = batch.slots[row, place]
            expected = table[batch.tokens[row, place]] if slot < 0 else flat[row, slot]
            np.testing.assert_allclose(made.inputs[row, place], expected, rtol=1e-5, atol=1e-6)
            seen += slot >= 0
    assert seen == 3 * V
    assert np.abs(made.visual[2, 0] - made.visual[2, 1]).max() > 0.01


def test_slots_may_stand_anywhere(compute, batch):
    slots = np.full_like(batch.slots, -1)
    slots[2, 3 : 3 + V], slots[2, 10 : 10 + V] = np.arange(V, 2 * V), np.arange(V)
    made = compute(batch._replace(slots=slots))
    np.testing.assert_allclose(made.inputs[2, 3 : 3 + V], made.visual[2, 1], rtol=1e-5)
    np.testing.assert_allclose(made.inputs[2, 10 : 10 + V], made.visual[2, 0], rtol=1e-5)


@pytest.mark.parametrize("field", ["pixels", "queries"])
def test_a_image_and_its_query_reach_their_row_alone(compute, batch, made, field):
    assert moved(made.hidden, compute(changed(batch, field, 2, 1)).hidden) == [False, False, True]
    assert moved(made.hidden, compute(changed(batch, field, 1, 0)).hidden) == [False, True, False]
    for row, image in [(0, 0), (0, 1), (1, 1)]:
        assert moved(made.hidden, compute(changed(batch, field, row, image)).hidden) == [False] * 3


def test_a_query_conditions_its_own_image_alone(compute, batch, made):
    after = compute(changed(batch, "queries", 2, 1))
    assert moved(made.visual[2], after.visual[2]) == [False, True]


def test_text_only_rows_are_what_the_decoder_alone_makes_of_them(params, batch, made):
    length = int(batch.segments[0].sum())
    text = params["decoder"]["embedding"][batch.tokens[0, :length]]
    expected = decode(params["decoder"], MODEL.decoder, text)
    np.testing.assert_allclose(made.hidden[0, :length], expected, rtol=1e-3, atol=1e-3)


def test_gradient_reaches_the_tower_and_not_the_decoder_through_the_visual_tokens(params, batch):
    def total(params: dict[str, Any]) -> jax.Array:
        model: Any = VLM(MODEL)
        visual = model.apply({"params": params}, batch._replace(ids=None), method=VLM.visual_tokens)
        return jnp.sum(jnp.sin(visual))

    sizes = {
        name: [float(np.abs(g).max()) for g in jax.tree.leaves(grads)]
        for name, grads in jax.jit(jax.grad(total))(params).items()
    }
    assert max(sizes["vision"]) > 0.01 and max(sizes["decoder"]) == 0.0
    # The key bias and the keys' LayerNorm bias have no effect on the output.
    assert sum(size == 0.0 for size in sizes["compressor"]) <= 2 and max(sizes["compressor"]) > 0.01
    assert min(sizes["projector"]) > 0.0


def test_with_the_query_zeroed_the_question_has_no_part_in_the_visual_tokens(params, batch, made):
    compressor = exchanged(MODEL.compressor, query="zero")
    model = VLM(dataclasses.replace(MODEL, compressor=compressor))
    run = jax.jit(lambda b: model.apply({"params": params}, b, method=VLM.visual_tokens))
    bare = batch._replace(ids=None)
    before, after = run(bare), run(changed(bare, "queries", 2, 1))
    np.testing.assert_array_equal(before, after)
    assert np.abs(np.asarray(before) - made.visual).max() > 1e-3


def test_pixels_are_normalised_on_the_device(params, batch):
    model = VLM(CONFIG.model)
    encode = jax.jit(lambda x: model.apply({"params": params}, x, method=VLM.encode_image))
    ours, wanted = encode(batch.pixels), encode(normalise(batch.pixels, PixelConfig()))
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_cached_features_take_the_place_of_pixels(params, batch, made):
    model = VLM(MODEL)
    run = jax.jit(lambda b: model.apply({"params": params}, b, method=parts))
    features = jax.jit(lambda x: model.apply({"params": params}, x, method=VLM.encode_image))(batch.pixels)
    assert features.shape == (3, 2, 16, 3, 16)
    cached = run(batch._replace(ids=None, pixels=None, features=np.asarray(features, np.float16)))
    np.testing.assert_allclose(cached.hidden, made.hidden, rtol=0.05, atol=0.05)
    # Rounded to float16, they cannot agree to the last bit with features made on the way.
    assert np.abs(np.asarray(cached.visual) - made.visual).max() > 0


def test_uncompressed_tokens_are_the_projected_select_layer_and_need_no_question(batch):
    model = dataclasses.replace(MODEL, compressor=NoneConfig())
    config = dataclasses.replace(CONFIG, model=model)
    params = random_params(config)
    assert model.visual_tokens == MODEL.vision.patches == 16 and "compressor" not in params
    # A pass over the question would spread the decoder's NaN.
    params["decoder"] = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params["decoder"])

    def run(module: VLM, batch: Batch) -> Any:
        return module.visual_tokens(batch), module.encode_image(batch.pixels)

    apply = jax.jit(lambda b: VLM(model).apply({"params": params}, b, method=run))
    visual, states = apply(batch._replace(ids=None))
    select = hidden_indices(MODEL.vision).index(MODEL.vision.depth - 1)
    p = params["projector"]
    hidden = affine(p["fc1"], np.asarray(states, np.float64)[..., select, :].reshape(-1, 16), 32)
    expected = affine(p["fc2"], gelu(hidden), 32).reshape(visual.shape)
    np.testing.assert_allclose(visual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype, root", [("float32", np.float32(24**0.5)), ("bfloat16", 4.90625)])
def test_scaled_embeddings_are_the_texts_alone(dtype, root):
    """Gemma's; the root of the width is rounded as transformers rounds it to its weights' type."""
    decoder = dataclasses.replace(MODEL.decoder, width=24, scale_embeddings=True)
    model = dataclasses.replace(MODEL, decoder=decoder, dtype=dtype)
    config = dataclasses.replace(CONFIG, model=model)
    params, batch = random_params(config), random_batch(config, images=[0, 1, 2])

    def both(batch: Batch) -> Any:
        run = VLM(model).apply
        return tuple(run({"params": params}, batch, method=one) for one in (VLM.visual_tokens, VLM.splice))

    visual, inputs = (np.asarray(x, np.float32) for x in jax.jit(both)(batch._replace(ids=None)))
    text = batch.slots < 0
    table = jnp.asarray(params["decoder"]["embedding"][batch.tokens], dtype) * jnp.asarray(root, dtype)
    np.testing.assert_array_equal(inputs[text], np.asarray(table, np.float32)[text])
    for row in (1, 2):
        here = visual[row].reshape(-1, 24)[batch.slots[row][batch.slots[row] >= 0]]
        np.testing.assert_array_equal(inputs[row][batch.slots[row] >= 0], here)
