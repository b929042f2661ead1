"""Conversations about several images: each is compressed with the question of its own turn."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from quecc_jax.config import RunConfig
from quecc_jax.data.images import load_pixels
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.text.conversation import query_ids
from quecc_jax.data.text.turns import query_turns
from quecc_jax.evaluate.answers import answer_rows
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.models.vlm import VLM
from tests.data.every_row import rows_by_id
from tests.data.three_images import TALKS, three_image_run, write_talks
from tests.tiny import asked, random_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_talks(tmp_path_factory.mktemp("talks"))


@pytest.fixture(scope="module")
def config(folder, tokenizer, model) -> RunConfig:
    return three_image_run(folder, tokenizer, model, depth=2, max_length=48)


@pytest.fixture(scope="module")
def params(config):
    return random_params(config, seed=3)


@pytest.fixture(scope="module")
def alone(config, params, folder, tokenizer):
    """(image, question) -> its visual tokens [V, M], from this image and this question alone."""

    def one(model: VLM, pixels, *asked):
        return model.compress(model.encode_image(pixels), model.encode_query(*asked)).tokens[0, 0]

    run = jax.jit(lambda *given: VLM(config.model).apply({"params": params}, *given, method=one))

    def tokens(image: int, question: str) -> np.ndarray:
        ids, _ = query_ids(question, tokenizer, config.data)
        padded, segments = np.pad(ids, (0, 8 - len(ids))), (np.arange(8) < len(ids)).astype(np.int32)
        pixels = load_pixels(folder / f"{image}.png", config.model.vision)
        return np.asarray(run(pixels[None, None], padded[None], segments[None], np.array([[len(ids) - 1]])))

    return {
        (image, turn): tokens(image, turn)
        for images, said in TALKS
        for image, turn in zip(images, query_turns(said), strict=True)
    }


@pytest.mark.parametrize("batching", ["pad", "grouped", "packed"])
def test_each_image_is_compressed_with_the_question_of_its_own_turn(config, params, alone, batching):
    data = dataclasses.replace(
        config.data, batching=batching, num_length_buckets=1, lookahead_rows=6, packed_images=4
    )
    splice = jax.jit(lambda batch: VLM(config.model).apply({"params": params}, batch, method=VLM.splice))
    rows, seen = list(rows_by_id(data)), set()
    with make_iterator(data, config.model, 3, seed=1) as batches:
        for batch in (next(batches) for _ in range(4)):
            assert batch.ids is not None
            inputs = np.asarray(splice(batch._replace(ids=None)))
            for index, ids in enumerate(batch.ids.reshape(3, -1)):
                for segment, identity in enumerate(ids[ids >= 0], start=1):
                    images, said = TALKS[rows.index(identity)]
                    here = (batch.segments[index] == segment) & (batch.slots[index] >= 0)
                    turns = zip(images, query_turns(said), strict=True)
                    wanted = [alone[image, turn] for image, turn in turns]
                    np.testing.assert_allclose(
                        inputs[index, here], np.concatenate([np.zeros((0, 16)), *wanted]), atol=1e-5
                    )
                    seen.add(int(identity))
    assert seen == set(rows)


def test_answers_about_several_images_are_those_of_a_data_set_with_them(config, params, folder):
    data = dataclasses.replace(config.data, max_length=64)
    answers = answer_rows(dataclasses.replace(config, data=data), params, max_new_tokens=6, batch_size=6)
    engine = Engine(dataclasses.replace(config, data=data), params, chunk=2)
    images = [engine.image(folder / f"{k}.png") for k in range(3)]
    # The data set's first question decides which images a prompt has, so those of later turns are left out.
    chosen = [k for k, (shown, said) in enumerate(TALKS) if said[0].count("<image>") == len(shown)]
    questions = [Question(TALKS[k][1][0], tuple(images[p] for p in TALKS[k][0])) for k in chosen]
    run = engine.run(questions, Limits(6))
    assert run.finish() == [answers[k].prediction for k in chosen]
    assert [usage.visual_tokens for usage in run.usage] == [4 * len(TALKS[k][0]) for k in chosen]
    # What was said before stays, and images may stand in any turn of it.
    turns = ("<image>\n<image>\nred or blue?", "red", "and <image> ?")
    later = Question(turns[2], tuple(images), turns[:2])
    length = len(engine.prompt(later).encoded.codes)
    batch = engine.batch([engine.prompt(later)], 64)
    assert batch.slots[0][batch.slots[0] >= 0].tolist() == list(range(12)) and length > 12
    own = [engine.tokenizer.decode(ids) for _, _, ids in asked(batch)]
    assert own == ["red blue?", "red blue?", "and?"] and later.asked() == "and  ?"
    assert len(engine.answers([later], Limits(4))) == 1
    later = later._replace(query="latest")
    maps, swapped = (
        np.asarray(engine.attention(later._replace(images=order)))
        for order in (tuple(images), tuple(images[::-1]))
    )
    np.testing.assert_allclose(maps, swapped[::-1], atol=1e-6)
