"""Attention maps name the right patches of the right rows."""

import dataclasses

import numpy as np
import pytest

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.pool import build_pool, write_features
from quecc_jax.data.templates import template_text
from quecc_jax.data.tokenizer import train_word_tokenizer
from quecc_jax.evaluate.attention import attention_maps
from quecc_jax.geometry import hidden_indices
from tests.tiny import MODEL, RUN, random_params

V, HEADS, GRID = 4, 4, 4


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return build_pool("mosaic", "test", tmp_path_factory.mktemp("pool") / "mosaic", 16, 5, 3, m=2)


@pytest.fixture(scope="module")
def data(pool, tmp_path_factory):
    directory = tmp_path_factory.mktemp("words") / "tokenizer"
    train_word_tokenizer([r["conversations"][0]["value"] for r in pool.rows] + [template_text()], directory)
    return DataConfig(
        sources=(SourceConfig("pool", str(pool.directory), split="test"),), tokenizer=str(directory),
        template="short", max_length=40, query_length=16, cached_features=True,
    )  # fmt: skip


def maps(data, pool, features, fingerprint):
    """All rows' maps [rows, V, H, g, g] laid out over the picture, zero outside a token's region."""
    write_features(pool, lambda images: features[: len(images)], 128, fingerprint)
    params = random_params(dataclasses.replace(RUN, data=data))
    params.pop("vision")
    rows, out = [], []
    for row, weights in attention_maps(MODEL, data, params, batch_size=4):
        assert weights.shape == (1, V, HEADS, 2, 2)
        np.testing.assert_allclose(weights.sum(axis=(-2, -1)), 1.0, rtol=1e-5)
        whole = np.zeros((V, HEADS, GRID, GRID))
        for token in range(V):
            r, c = divmod(token, 2)
            whole[token, :, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2] = weights[0, token]
        rows.append(row)
        out.append(whole)
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
