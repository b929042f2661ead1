"""Any-resolution images: how their tokens are arranged, in batches of every kind and in answers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from quecc_jax.config import RunConfig, SourceConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.config.validation import validate
from quecc_jax.data.images import image_size, load_pixels
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.sources.open import open_sources
from quecc_jax.data.text.conversation import query_ids
from quecc_jax.errors import BadRow, UserError
from quecc_jax.evaluate.answers import answer_rows
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.models.vlm import VLM
from tests.data.every_row import eval_batches
from tests.data.three_images import three_image_run
from tests.tiny import random_params

TILES = ((2, 2), (3, 1))
# Width and height; grid; rows and columns of the map of tokens, 2 x 2 a tile, that hold some of the image.
IMAGES = [
    ((48, 24), (2, 2), (slice(1, 3), slice(0, 4))),
    ((20, 70), (3, 1), (slice(0, 6), slice(0, 2))),
    ((40, 40), (2, 2), (slice(0, 4), slice(0, 4))),
]
LENGTHS = [4 + 2 * 5, 4 + 6 * 3, 4 + 4 * 5]
TALKS = [
    ((), "one?"),
    ((0,), "<image>\nred?"),
    ((1, 2), "<image> two <image>"),
    ((2,), "<image>\nblue?"),
    ((2, 1, 0), "<image><image>\nthree? <image>"),
    ((1,), "<image>"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for number, ((width, height), _, _) in enumerate(IMAGES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number}.png")
    rows = [
        {
            "image": [f"{k}.png" for k in images],
            "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "green"}],
        }
        for images, text in TALKS
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def config(folder, tokenizer, model) -> RunConfig:
    model = dataclasses.replace(model, vision=dataclasses.replace(model.vision, tiles=TILES))
    config = three_image_run(folder, tokenizer, model, depth=1, max_length=96)
    validate(config)
    return config


@pytest.fixture(scope="module")
def params(config):
    return random_params(config, seed=3)


@pytest.fixture(scope="module")
def stands(config, params, folder, tokenizer):
    """(image, question) -> what stands for the image [L, M], put together square by square."""

    def one(model: VLM, pixels, *asked):
        return model.compress(model.encode_image(pixels), model.encode_query(*asked)).tokens[0]

    run = jax.jit(lambda *given: VLM(config.model).apply({"params": params}, *given, method=one))

    def tokens(image: int, question: str) -> np.ndarray:
        _, (rows, columns), kept = IMAGES[image]
        squares = load_pixels(folder / f"{image}.png", config.model.vision)
        assert len(squares) == 1 + rows * columns
        ids, _ = query_ids(question, tokenizer, config.data)
        padded = np.zeros((5, 24, 24, 3), np.uint8)
        padded[: len(squares)] = squares
        asked, segments = np.pad(ids, (0, 8 - len(ids))), (np.arange(8) < len(ids)).astype(np.int32)
        made = np.asarray(run(padded[None], asked[None], segments[None], np.full((1, 5), len(ids) - 1)))
        whole, tiles = made[0], [made[1 + k].reshape(2, 2, 16) for k in range(rows * columns)]
        lines = [np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
        shown = np.concatenate(lines, axis=0)[kept]
        newline = np.asarray(params["projector"]["newline"])
        return np.concatenate([whole, *(np.concatenate([line, newline[None]]) for line in shown)])

    return {(image, text): tokens(image, text) for images, text in TALKS for image in images}


@pytest.mark.parametrize("batching", ["pad", "grouped", "packed"])
def test_the_whole_comes_first_and_the_map_without_its_padding_row_by_row(config, params, stands, batching):
    data = dataclasses.replace(
        config.data, batching=batching, num_length_buckets=1, lookahead_rows=6, packed_images=15
    )
    splice = jax.jit(lambda batch: VLM(config.model).apply({"params": params}, batch, method=VLM.splice))
    seen = set()
    with make_iterator(data, config.model, 2, seed=1) as batches:
        for batch in (next(batches) for _ in range(5)):
            assert batch.ids is not None and batch.query_ends.shape[1] in (0, 15)
            inputs = np.asarray(splice(batch._replace(ids=None)))
            for index, ids in enumerate(batch.ids.reshape(2, -1)):
                for segment, identity in enumerate(ids[ids >= 0].tolist(), start=1):
                    images, text = TALKS[identity]
                    here = (batch.segments[index] == segment) & (batch.slots[index] >= 0)
                    assert here.sum() == sum(LENGTHS[image] for image in images)
                    wanted = [np.zeros((0, 16)), *(stands[image, text] for image in images)]
                    np.testing.assert_allclose(inputs[index, here], np.concatenate(wanted), atol=1e-5)
                    seen.add(identity)
    assert seen == set(range(len(TALKS)))


def test_the_newline_learns_from_every_row_of_the_map(config, params):
    batch = next(eval_batches(config.data, config.model, 6))._replace(ids=None)

    def total(projector):
        given = {"params": params | {"projector": projector}}
        inputs: Any = VLM(config.model).apply(given, batch, method=VLM.splice)
        return jnp.sum(inputs)

    gradient = jax.jit(jax.grad(total))(params["projector"])["newline"]
    rows = [2, 6, 4]
    np.testing.assert_allclose(gradient, sum(rows[p] for images, _ in TALKS for p in images))


def test_answers_are_those_of_a_data_set_with_the_same_images(config, params, folder):
    answers = answer_rows(config, params, max_new_tokens=4, batch_size=6)
    engine = Engine(config, params, chunk=2)
    images = [engine.image(folder / f"{k}.png") for k in range(3)]
    questions = [Question(text, tuple(images[p] for p in shown)) for shown, text in TALKS]
    run = engine.run(questions, Limits(4))
    assert run.finish() == [answer.prediction for answer in answers]
    lengths = [sum(LENGTHS[image] for image in shown) for shown, _ in TALKS]
    assert [usage.visual_tokens for usage in run.usage] == lengths
    misses = engine.reuse.counted["images"].misses
    assert misses == 5 + 4 + 5
    maps = engine.attention(Question("red?", (images[1], images[0])))
    assert maps is not None and maps.shape[:2] == (2, 4)


@pytest.mark.parametrize(
    "settings", [{"batching": "packed"}, {"batching": "packed", "pooled_rows": 2}], ids=str
)
def test_shrunk_maps_are_the_same_in_every_batch_and_answer(config, params, folder, settings):
    """At most one square's worth of each map is left: of 2 x 4 tokens 1 x 2, of 6 x 2 3 x 1, of 4 x 4 2 x 2.
    tests/parity/test_onevision.py holds the numbers."""
    vision = dataclasses.replace(config.model.vision, max_squares=1)
    model = dataclasses.replace(config.model, vision=vision)
    config = dataclasses.replace(config, model=model)
    validate(config)
    lengths = [4 + 1 * (2 + 1), 4 + 3 * (1 + 1), 4 + 2 * (2 + 1)]
    splice = jax.jit(lambda batch: VLM(model).apply({"params": params}, batch, method=VLM.splice))
    padded = next(eval_batches(config.data, model, 6))
    inputs = np.asarray(splice(padded._replace(ids=None)))
    wanted = [inputs[row, padded.slots[row] >= 0] for row in range(6)]
    assert [len(one) for one in wanted] == [sum(lengths[image] for image in images) for images, _ in TALKS]
    data = dataclasses.replace(config.data, lookahead_rows=6, packed_images=15, **settings)
    seen = set()
    with make_iterator(data, model, 2, seed=1) as batches:
        for batch in (next(batches) for _ in range(4)):
            assert batch.ids is not None
            inputs = np.asarray(splice(batch._replace(ids=None)))
            for index, ids in enumerate(batch.ids.reshape(2, -1)):
                for segment, identity in enumerate(ids[ids >= 0].tolist(), start=1):
                    here = (batch.segments[index] == segment) & (batch.slots[index] >= 0)
                    np.testing.assert_allclose(inputs[index, here], wanted[identity], atol=1e-5)
                    seen.add(identity)
    assert seen == set(range(len(TALKS)))
    engine = Engine(config, params, chunk=2)
    images = [engine.image(folder / f"{k}.png") for k in range(3)]
    run = engine.run([Question(text, tuple(images[p] for p in shown)) for shown, text in TALKS], Limits(4))
    answers = answer_rows(config, params, max_new_tokens=4, batch_size=6)
    assert run.finish() == [answer.prediction for answer in answers]
    assert [usage.visual_tokens for usage in run.usage] == [len(one) for one in wanted]


def test_tokens_without_a_grid_follow_each_other_without_newlines(config):
    compressor = exchanged(config.model.compressor, name="resampler", tokens=3)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, compressor=compressor))
    validate(other)
    assert "newline" not in random_params(other)["projector"]
    batch = next(eval_batches(other.data, other.model, 6))
    assert batch.slots[1][batch.slots[1] >= 0].tolist() == list(range(5 * 3))
    assert batch.slots[2][batch.slots[2] >= 0].tolist() == list(range((4 + 5) * 3))


def test_a_image_that_is_missing_or_turned_is_known_before_it_is_read(config, folder, tmp_path):
    turned = Image.fromarray(np.zeros((24, 48, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    for name in ("turned.jpg", "turned.png"):
        turned.save(tmp_path / name, exif=exif)
        assert image_size(tmp_path / name) == (24, 48)
        assert image_size(tmp_path / name, "original") == (48, 24)
    (tmp_path / "rows.json").write_text(
        json.dumps(
            [
                {
                    "image": "gone.png",
                    "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red"}],
                }
            ]
        )
    )
    source = SourceConfig(path=str(tmp_path / "rows.json"), images=str(tmp_path))
    data = dataclasses.replace(config.data, sources=(source,))
    with pytest.raises(BadRow, match=r"rows.json, row 1 .*gone.png does not exist"):
        open_sources(data, config.model)[0].encoded(0)


@pytest.mark.parametrize(
    "vision, compressor, settings, message",
    [
        ({"tiles": ((2, 0),)}, {}, {}, "not all numbers of rows and columns"),
        ({"scales": (1, 2)}, {}, {}, "both cut an image"),
        ({}, {}, {"cached_features": True}, "need the images themselves"),
        ({}, {}, {"sources": (SourceConfig(kind="pool", path="p"),)}, "need the images themselves"),
        ({}, {}, {"batching": "packed", "packed_images": 14}, r"images_per_row 3 x 5 with its tiles"),
        ({}, {}, {"max_length": 72}, r"no room for text beside 3 x 24 visual tokens"),
        ({}, {"elastic": (1, 4)}, {}, "need one V"),
    ],
)
def test_what_makes_no_sense_is_said(config, vision, compressor, settings, message):
    changed = dataclasses.replace(
        config.model,
        vision=dataclasses.replace(config.model.vision, **vision),
        compressor=exchanged(config.model.compressor, **compressor),
    )
    data = dataclasses.replace(config.data, **settings)
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(config, model=changed, data=data))
