"""PruMerge against loops over patches, and what it reads of the tower against the tower written out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config.compressors import exchanged
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.models.compressors.base import Features
from quecc_jax.models.compressors.build import make_compressor
from quecc_jax.models.towers.vit import VisionTower, split_features
from tests.models.reference import affine, layer, layer_norm, softmax, tower
from tests.tiny import MODEL, random_like, run

N, D = 49, 6
UNASKED = np.zeros((2, 1, 4), np.float32)
"""The questions' features, which are not read."""


def written_out(x: np.ndarray, a: np.ndarray, keys: np.ndarray, v: int, evenly: int) -> np.ndarray:
    """[V, D] of one image, patch by patch."""
    spread = [int((i + 0.5) * len(a) / evenly) for i in range(evenly)]
    ranked = sorted((j for j in range(len(a)) if j not in spread), key=lambda j: (-a[j], j))
    kept = ranked[: v - 1 - evenly] + spread
    unit = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-12)
    assert len(set(kept)) == v - 1
    out = []
    for i in kept:
        others = sorted((j for j in range(len(a)) if j != i), key=lambda j: (-round(unit[i] @ unit[j], 9), j))
        out.append(x[i] + sum(a[j] * x[j] for j in others[:32]))
    out.append(sum((a[j] * x[j] for j in range(len(a)) if j not in kept), np.zeros(x.shape[1])))
    return np.stack(out)


@pytest.mark.parametrize("tokens", [1, 2, 7, 49])
@pytest.mark.parametrize("name, share", [("prumerge", 0), ("prumerge_plus", 2)])
def test_tokens_are_kept_merged_and_summed_up_as_written_out(name, share, tokens):
    rng = np.random.default_rng(tokens)
    x, keys = rng.normal(size=(2, 2, N, D))
    # Ties: few different attentions, and patches with the very same keys.
    a = rng.integers(1, 5, (2, N)) / 100
    keys[:, 20:30] = keys[:, :10]
    vision = dataclasses.replace(MODEL.vision, image_size=28, width=D)
    compressor = exchanged(MODEL.compressor, name=name, tokens=tokens)
    module = make_compressor(dataclasses.replace(MODEL, vision=vision, compressor=compressor))
    single, attention, keys_ = (z.astype(np.float32) for z in (x, a, keys))
    ours = jax.jit(lambda *z: module.apply({}, Features(z[0], z[0], z[1], z[2]), UNASKED))(
        single, attention, keys_
    )
    for image in range(2):
        evenly = (tokens - 1) // share if share else 0
        wanted = written_out(x[image], a[image], keys[image], tokens, evenly)
        np.testing.assert_allclose(ours[image], wanted, rtol=1e-4, atol=1e-5)


def test_keys_are_compared_by_direction_down_to_zero():
    """Lengths of 1e-9 and less would count for nothing with an epsilon that is seen; keys of
    zeros are at right angles to all."""
    rng = np.random.default_rng(0)
    x, keys = rng.normal(size=(2, N, D))
    a = rng.permutation(N) / 100
    module = make_compressor(
        dataclasses.replace(
            MODEL,
            vision=dataclasses.replace(MODEL.vision, image_size=28, width=D),
            compressor=exchanged(MODEL.compressor, name="prumerge", tokens=7),
        )
    )

    def tokens(keys: np.ndarray) -> np.ndarray:
        single, attention, keys_ = (jnp.asarray(z[None], jnp.float32) for z in (x, a, keys))
        return np.asarray(module.apply({}, Features(single, single, attention, keys_), UNASKED[:1]))[0]

    lengths = 10.0 ** -rng.integers(0, 10, (N, 1))
    np.testing.assert_allclose(tokens(keys * lengths), written_out(x, a, keys, 7, 0), rtol=1e-4, atol=1e-5)
    keys[np.argsort(a)[:12]] = 0
    np.testing.assert_allclose(tokens(keys), written_out(x, a, keys, 7, 0), rtol=1e-4, atol=1e-5)


def test_the_tower_keeps_what_it_reads_and_its_states_stay_what_they_were():
    """The layer behind the select layer need not run: here it is the last, and no state of it is kept."""
    # So large an epsilon shows where it is missing.
    plain = dataclasses.replace(MODEL.vision, levels=(1, 2), norm_eps=0.1)
    config = dataclasses.replace(plain, keep_attention=True)
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    params = random_like(
        jax.tree.map(
            lambda leaf: leaf.value,
            jax.eval_shape(VisionTower(config).init, jax.random.key(0), pixels)["params"],
            is_leaf=lambda leaf: hasattr(leaf, "value"),
        )
    )

    def both(pixels: jax.Array) -> tuple[Features, ...]:
        made: list[Any] = [VisionTower(c).apply({"params": params}, pixels) for c in (config, plain)]
        return split_features(made[0], config), split_features(made[1], plain)

    ours, bare = jax.jit(both)(pixels)
    np.testing.assert_array_equal(ours.single, bare.single)
    np.testing.assert_array_equal(ours.multi, bare.multi)
    assert bare.attention is None and bare.keys is None
    p = layer(params["layers"], 2)
    for image in range(2):
        x = layer_norm(p["norm1"], tower(params, plain, pixels[image], cls=True)[2], plain.norm_eps)
        q, k = (affine(p[name], x, 16) for name in "qk")
        np.testing.assert_allclose(ours.keys[image], k[1:], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(ours.attention[image], softmax(k @ q[0] / 4)[1:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "vision, message",
    [
        ({"select_layer": -1}, r"compressor prumerge reads the layer behind vision.select_layer -1"),
        ({"scales": (1, 2)}, r"compressor prumerge reads the attention of one CLS"),
    ],
)
def test_towers_that_have_no_such_attention_are_refused(vision, message):
    compressor = exchanged(MODEL.compressor, name="prumerge")
    with pytest.raises(UserError, match=message):
        validate(run(model={"compressor": compressor, "vision": dataclasses.replace(MODEL.vision, **vision)}))
    with pytest.raises(ValueError, match="attention and keys, which the tower's states lack"):
        module = make_compressor(dataclasses.replace(MODEL, compressor=compressor))
        module.apply({}, Features(np.zeros((1, 16, 4)), np.zeros((1, 16, 4))), UNASKED[:1])  # type: ignore[arg-type]
