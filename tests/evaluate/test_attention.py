"""Attention maps name the right patches of the right rows."""

import dataclasses

import numpy as np
import pytest

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.config.compressors import exchanged, names
from quecc_jax.config.shapes import hidden_indices, state_shape
from quecc_jax.data.sources.pool import write_features
from quecc_jax.data.text.templates import template_text
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.evaluate.attention import attention_maps, own_squares, patch_map
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.generate.decode import decoding_params
from quecc_jax.generate.reuse import Encoders, Reuse, over_image
from tests.tiny import MODEL, RUN, random_batch, random_params, run

V, HEADS, GRID = 4, 4, 4


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return build_pool("mosaic", "test", tmp_path_factory.mktemp("pool") / "mosaic", 16, 5, 3, m=2)


@pytest.fixture(scope="module")
def data(pool, tmp_path_factory):
    directory = tmp_path_factory.mktemp("words") / "tokenizer"
    train_word_tokenizer([r["conversations"][0]["value"] for r in pool.rows] + [template_text()], directory)
    return DataConfig(
        sources=(SourceConfig("pool", str(pool.directory), split="test"),),
        tokenizer=str(directory),
        template="short",
        max_length=40,
        query_length=16,
        cached_features=True,
    )


def maps(data, pool, features, fingerprint):
    """All rows' maps [rows, V, H, g, g]."""
    write_features(pool, lambda images: features[: len(images)], 128, fingerprint)
    params = random_params(dataclasses.replace(RUN, data=data))
    params.pop("vision")
    rows, out = [], []
    for row, weights in attention_maps(dataclasses.replace(RUN, data=data), params, batch_size=4):
        assert weights.shape == (1, V, HEADS, GRID, GRID)
        np.testing.assert_allclose(weights.sum(axis=(-2, -1)), 1.0, rtol=1e-5)
        rows.append(row)
        out.append(weights[0])
    return rows, np.stack(out)


def test_a_patch_whose_keys_change_changes_its_own_region_alone(pool, data):
    rng = np.random.default_rng(0)
    states = len(hidden_indices(MODEL.vision))
    features = rng.normal(size=(5, GRID**2, states, MODEL.vision.width)).astype(np.float16)
    rows, before = maps(data, pool, features, "as drawn")
    assert [row["conversations"] for row in rows] == [row["conversations"] for row in pool.rows]
    # The first state is a level but not the selected one, so that only keys and values see it.
    patch, (r, c) = 6, divmod(6, GRID)
    changed = features.copy()
    changed[:, patch, 0] *= 3
    _, after = maps(data, pool, changed, "one patch changed")
    token = 2 * (r // 2) + c // 2
    others = [t for t in range(V) if t != token]
    np.testing.assert_allclose(after[:, others], before[:, others], atol=1e-6)
    square = (slice(2 * (r // 2), 2 * (r // 2) + 2), slice(2 * (c // 2), 2 * (c // 2) + 2))
    ratio = (after[:, token, :, *square] / before[:, token, :, *square]).reshape(-1, 4)
    # Softmax keeps the ratios of the three other patches; the changed one leaves them.
    place = 2 * (r % 2) + c % 2
    same = np.delete(ratio, place, axis=-1)
    np.testing.assert_allclose(same / same[:, :1], 1.0, rtol=1e-3)
    assert np.median(np.abs(ratio[:, place] / same[:, 0] - 1)) > 0.02


def everything(**settings):
    """quecc_plus with all its attentions, of which those of the visual tokens alone are shown."""
    return exchanged(MODEL.compressor, name="quecc_plus", memory=16, registers=True, **settings)


@pytest.mark.parametrize(
    "compressor",
    [
        *(exchanged(MODEL.compressor, name=name) for name in names()),
        everything(rounds=1),
        everything(rounds=3),
    ],
    ids=lambda c: f"{c.name}-{getattr(c, 'rounds', 1)}",
)
def test_the_maps_of_every_compressor(compressor):
    """Shape and sums; squares of their own where tokens have them; and whose maps depend on the image."""
    name = compressor.name
    config = run(model={"compressor": compressor}, data={"max_length": 48}, batch_size=2)
    params = decoding_params(random_params(config), config.model)
    batch = random_batch(config, images=[2, 1])
    shape = (2, 2, *state_shape(config.model.tower))
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found = Encoders(config.model, Reuse()).attention(params, batch._replace(pixels=None, features=features))
    if name in ("avgpool", "conv", "m3", "none", "random"):
        assert found is None
        return
    v = config.model.visual_tokens
    assert found is not None and found.shape[:3] == (2, 2, v) and found.shape[4:] == (GRID, GRID)
    np.testing.assert_allclose(found.sum(axis=(-2, -1)), 1, rtol=1e-5)
    assert own_squares(found[0, 0]) == (2 if name in ("quecc", "quecc_plus", "tokenpacker") else 1)
    assert bool(np.abs(found[0, 0] - found[0, 1]).max() > 1e-3) == (name != "mqt")
    np.testing.assert_allclose(patch_map(found[0, 0]).mean(), 1, rtol=1e-5)


def test_a_tokens_own_square_has_its_place():
    own = np.arange(1.0, 25).reshape(4, 2, 3)[:, :, :1] * np.ones(9)
    laid = over_image(own, 6)
    assert laid.shape == (4, 2, 6, 6) and own_squares(laid) == 2
    for token, (y, x) in enumerate([(0, 0), (0, 3), (3, 0), (3, 3)]):
        np.testing.assert_array_equal(laid[token, :, y : y + 3, x : x + 3].reshape(2, 9), own[token])
    assert laid.sum() == own.sum()
    everywhere = over_image(np.broadcast_to(np.arange(36.0), (3, 4, 2, 36)), 6)
    np.testing.assert_array_equal(everywhere[2, 3, 1], np.arange(36.0).reshape(6, 6))
    assert own_squares(everywhere[0]) == 1
    np.testing.assert_allclose(
        patch_map(everywhere[0] / everywhere[0, 0, 0].sum()), np.arange(36.0).reshape(6, 6) * 36 / 630
    )
