"""Features that are held are those that would be computed, within a limit, and counted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, NoneConfig
from quecc_jax.config.compressors import exchanged, names
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.generate.decode import decoding_params
from quecc_jax.generate.reuse import Counter, Encoders, Reuse, pieces, round_up, size_of
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import make_mesh
from tests.compressors import fitting
from tests.tiny import MODEL, asked, random_batch, random_params, run

CONFIG = run(batch_size=4)


@pytest.fixture(scope="module")
def params():
    return decoding_params(random_params(CONFIG, seed=1), MODEL)


@pytest.fixture(scope="module")
def batch():
    """Rows 0 and 1 ask the same; rows 1 and 2 show the same first image."""
    made = random_batch(CONFIG, seed=2, images=[1, 2, 1, 0])._replace(ids=None)
    pixels = np.random.default_rng(0).integers(0, 256, made.pixels.shape).astype(np.uint8)
    pixels[2, 0] = pixels[1, 0]
    asking = {name: getattr(made, name).copy() for name in ("queries", "query_segments", "query_ends")}
    for array in asking.values():
        array[0] = array[1]
    asking["query_ends"][0, 1] = -1
    return made._replace(pixels=pixels, **asking)


USED = (
    "tokens",
    "slots",
    "labels",
    "positions",
    "segments",
    "queries",
    "query_segments",
    "query_ends",
    "pixels",
)


def plain(params, batch) -> np.ndarray:
    tokens = VLM(MODEL, unrolled=True).apply({"params": params}, batch, method="visual_tokens")
    return np.asarray(tokens)


def check(found: jax.Array, wanted: np.ndarray, ends: np.ndarray) -> None:
    here = ends >= 0
    np.testing.assert_allclose(np.asarray(found)[here], wanted[here], rtol=2e-4, atol=2e-5)


def test_visual_tokens_are_those_of_the_model_on_the_first_call_and_the_second(params, batch):
    encode, wanted = Encoders(MODEL, Reuse()), plain(params, batch)
    assert np.abs(wanted[0, 0] - wanted[1, 0]).max() > 1e-2
    for _ in range(2):
        check(encode(params, batch).tokens, wanted, batch.query_ends)
    # Four images shown, of which two are one; four queries, of which two are one. Then all again.
    report = encode.reuse.report()
    assert (report["images"]["misses"], report["images"]["hits"]) == (3, 5)
    different = len({ids.tobytes() for _, _, ids in asked(batch)})
    assert (report["questions"]["misses"], report["questions"]["hits"]) == (different, 8 - different)
    assert report["images"]["hit_rate"] == 5 / 8


@pytest.mark.parametrize("name", names())
def test_every_compressor_makes_of_what_is_held_what_the_model_makes(name, batch):
    """And looks where it does without anything held; both of what was computed once."""
    vision = dataclasses.replace(MODEL.vision, keep_cls=name in ("quecc", "m3"))
    given = {"compressor": exchanged(MODEL.compressor, name), "vision": vision}
    config = run(model=given, batch_size=4)
    params = decoding_params(random_params(config, seed=1), config.model)
    model: Any = VLM(config.model, unrolled=True)
    wanted, states = jax.jit(
        lambda p, b: model.apply(
            {"params": p}, b, method=lambda m, b: (m.encode_visual(b), m.encode_image(b.pixels))
        )
    )(params, batch)
    encode, plain = Encoders(config.model, Reuse()), Encoders(config.model, Reuse())
    looked = plain.attention(params, batch._replace(pixels=None, features=np.asarray(states)))
    here = batch.query_ends >= 0
    for _ in range(2):
        found = encode(params, batch)
        assert (found.memory is None) == (wanted.memory is None) == (not config.model.memory_tokens)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            check(ours, np.asarray(theirs), batch.query_ends)
    assert encode.reuse.counted["images"].misses == 3
    kept = dataclasses.replace(encode.reuse.counted["images"])
    for _ in range(2):
        weights = encode.attention(params, batch)
        assert (weights is None) == (looked is None)
        if weights is not None and looked is not None:
            np.testing.assert_allclose(weights[here], looked[here], rtol=1e-4, atol=1e-6)
    if looked is not None:
        # Of a compressor that reads no question its weights are of the image, too.
        more = 0 if config.model.compressor.reads_question else 3
        assert encode.reuse.counted["images"].misses == kept.misses + more
    assert encode.reuse.images.currsize == sum(map(size_of, encode.reuse.images.values()))


@pytest.mark.parametrize("name", ["quecc", "tokenpacker", "mqt"])
def test_engines_of_several_v_share_what_does_not_depend_on_it(name, batch):
    config = run(model={"compressor": fitting(name, elastic=(1, 4), heads=4, queries=16)}, batch_size=4)
    params = decoding_params(random_params(config, seed=1), config.model)
    reuse, shared = Reuse(), config.model.compressor.reads_question
    for number, v in enumerate((1, 4, 1, 4)):
        model = at_visual_tokens(config.model, v)
        tokens = Encoders(model, reuse)(params, batch).tokens
        wanted: Any = VLM(model, unrolled=True).apply({"params": params}, batch, method="visual_tokens")
        assert tokens.shape == (4, 2, v, 32)
        check(tokens, np.asarray(wanted), batch.query_ends)
        assert reuse.counted["images"].misses == (3 if shared else 3 * min(number + 1, 2))
    assert reuse.counted["images"].hits == 16 - reuse.counted["images"].misses


def test_features_on_eight_devices_are_those_of_one(params, batch):
    mesh = make_mesh(MeshConfig(2, 2, 2))
    tokens = Encoders(MODEL, Reuse(), mesh)(params, batch).tokens
    check(tokens, plain(params, batch), batch.query_ends)


def test_cached_features_are_taken_as_they_are(params, batch):
    model, pixels = VLM(MODEL, unrolled=True), jnp.asarray(batch.pixels)
    states = model.apply({"params": params}, pixels, method="encode_image")
    encode = Encoders(MODEL, Reuse())
    tokens = encode(params, batch._replace(pixels=None, features=np.asarray(states))).tokens
    check(tokens, plain(params, batch), batch.query_ends)
    assert encode.reuse.counted["images"] == Counter()


def test_a_model_that_reads_no_question_computes_none(batch):
    config = run(model={"compressor": NoneConfig()}, batch_size=4)
    params = decoding_params(random_params(config, seed=1), config.model)
    encode = Encoders(config.model, Reuse())
    tokens = encode(params, batch).tokens
    assert encode.attention(params, batch) is None and tokens.shape == (4, 2, 16, 32)
    assert encode.reuse.counted["questions"] == Counter()


def test_no_images_cost_nothing(params, batch):
    encode = Encoders(MODEL, Reuse())
    blind = batch._replace(query_ends=np.full((4, 2), -1, np.int32))
    tokens = encode(params, blind).tokens
    assert encode.attention(params, blind) is None
    assert tokens.shape == (4, 2, 4, 32) and not np.asarray(tokens).any()
    assert encode.reuse.report()["images"] == {
        "hits": 0,
        "misses": 0,
        "hit_rate": None,
        "seconds_saved": None,
    }


def test_what_was_used_longest_ago_leaves_first_and_the_limit_is_in_bytes(params, batch):
    one, wanted = Encoders(MODEL, Reuse()), plain(params, batch)
    one(params, batch)
    sizes = {size_of(tree) for tree in one.reuse.images.values()}
    assert len(one.reuse.images) == 3 and len(sizes) == 1
    (size,) = sizes
    few = Encoders(MODEL, Reuse(image_bytes=2 * size))
    for rows, misses in (([0], 1), ([1], 3), ([1], 3), ([2], 3), ([0], 4), ([2], 4)):
        part = batch._replace(**{name: getattr(batch, name)[rows] for name in USED})
        check(few(params, part).tokens, wanted[rows], part.query_ends)
        assert few.reuse.counted["images"].misses == misses
        assert few.reuse.images.currsize <= 2 * size
    none = Encoders(MODEL, Reuse(image_bytes=size - 1, question_bytes=1))
    for _ in range(2):
        check(none(params, batch).tokens, wanted, batch.query_ends)
    assert len(none.reuse.images) == len(none.reuse.questions) == 0
    assert none.reuse.counted["images"].misses == 6


def test_the_time_saved_is_the_hits_at_the_mean_time_of_a_timed_miss():
    assert Counter(hits=6, misses=4, timed=2, seconds=1.0).report() == {
        "hits": 6,
        "misses": 4,
        "hit_rate": 0.6,
        "seconds_saved": 3.0,
    }
    assert Counter(hits=6, misses=4).report()["seconds_saved"] is None


def test_buckets_grow_by_half_or_a_third():
    assert [round_up(n) for n in (1, 2, 3, 4, 5, 6, 7, 9, 13, 25, 33, 49, 65)] == [
        1,
        2,
        3,
        4,
        6,
        6,
        8,
        12,
        16,
        32,
        48,
        64,
        96,
    ]
    assert all(n <= round_up(n, 4) and round_up(n, 4) % 4 == 0 for n in range(1, 40))


def test_what_is_encoded_in_parts_is_what_is_encoded_at_once(params, batch, monkeypatch):
    wanted = plain(params, batch)
    monkeypatch.setattr("quecc_jax.generate.reuse.AT_ONCE", 2)
    encode = Encoders(MODEL, Reuse())
    check(encode(params, batch).tokens, wanted, batch.query_ends)
    assert encode.reuse.counted["images"].misses == 3
    # Three images are a program of two and one of one.
    assert {rows for name, rows, _ in encode._compiled if name == "images"} == {2, 1}


def test_pieces_are_few_sizes_that_fill_every_place_but_the_last():
    assert [[*pieces(n)] for n in (0, 1, 3, 13, 32, 75)] == [
        [],
        [1],
        [2, 1],
        [8, 4, 1],
        [32],
        [32, 32, 8, 2, 1],
    ]
    assert [[*pieces(n, 4)] for n in (1, 4, 11, 12)] == [[4], [4], [8, 4], [8, 4]]
    assert [[*pieces(n, 3)] for n in (5, 100)] == [[3, 3], [96, 3, 3]]
