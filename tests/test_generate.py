"""Greedy decoding with the cache picks what full passes over the growing text pick."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax.data.batch import Batch
from quecc_jax.generate import build_generator
from quecc_jax.models.vlm import VLM
from tests.tiny import MODEL, random_batch, random_params, run

NEW = 5
CONFIG = run(data={"max_length": 20}, batch_size=5)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, seed=1)


@pytest.fixture(scope="module")
def prompts() -> Batch:
    """Prompts of different lengths about no, one or two pictures, and an empty row."""
    batch = random_batch(CONFIG, seed=3, pictures=[0, 1, 2, 0, 1])
    blank = {name: np.array(getattr(batch, name)) for name in ("tokens", "slots", "segments", "positions")}
    for array in blank.values():
        array[4] = 0
    blank["slots"][4] = -1
    assert len(set(blank["segments"].sum(axis=1).tolist())) > 3
    return batch._replace(ids=None, **blank)


@pytest.fixture(scope="module")
def reference(params, prompts) -> np.ndarray:
    """[B, NEW] continuations, each token chosen after a full pass over all before it."""

    @jax.jit
    def choose(batch: Batch) -> jax.Array:
        model: Any = VLM(MODEL)
        hidden = model.apply({"params": params}, batch)
        return model.apply({"params": params}, hidden, method=VLM.logits).argmax(axis=-1)

    rows, length = prompts.tokens.shape
    lengths = prompts.segments.sum(axis=1)
    tokens, segments = (np.pad(x, ((0, 0), (0, NEW))) for x in (prompts.tokens, prompts.segments))
    slots = np.pad(prompts.slots, ((0, 0), (0, NEW)), constant_values=-1)
    positions = np.broadcast_to(np.arange(length + NEW, dtype=np.int32), tokens.shape)
    out = np.zeros((rows, NEW), int)
    for step in range(NEW):
        grown = {"tokens": tokens, "slots": slots, "segments": segments, "positions": positions}
        picked = np.asarray(choose(prompts._replace(labels=slots, **grown)))
        for row in range(rows):
            end = lengths[row] + step
            out[row, step] = picked[row, end - 1]
            tokens[row, end], segments[row, end] = out[row, step], 1
    return out


def test_every_token_is_the_full_passes_choice_until_the_row_ends(params, prompts, reference):
    # A token that ends some rows, at different steps, and leaves others running.
    real = reference[:4]
    ends = {int(t): [row.tolist().index(t) if t in row else NEW for row in real] for t in np.unique(real)}
    eos, where = max(ends.items(), key=lambda item: len(set(item[1])))
    assert len(set(where)) >= 3 and NEW in where
    answers = np.asarray(build_generator(MODEL, NEW, eos)(params, prompts))
    assert answers.shape == (5, NEW) and answers.dtype == np.int32
    for row, end in enumerate(where):
        np.testing.assert_array_equal(answers[row, :end], reference[row, :end])
        assert (answers[row, end:] == eos).all()
    assert (answers[4] == eos).all()


def test_any_of_several_tokens_ends_a_row(params, prompts, reference):
    eos = next(t for t in range(MODEL.decoder.vocab_size) if t not in reference)
    others = tuple(dict.fromkeys(reference[:4, 2].tolist()))[:2]
    answers = np.asarray(build_generator(MODEL, NEW, eos, others)(params, prompts))
    for row, real in zip(answers[:4], reference[:4], strict=True):
        end = next((i for i, token in enumerate(real) if token in others), NEW)
        assert row.tolist() == [*real[:end], *[eos] * (NEW - end)]


def test_bfloat16_answers_are_tokens(params, prompts):
    model = dataclasses.replace(MODEL, dtype="bfloat16")
    answers = np.asarray(build_generator(model, 2, 0)(params, prompts))
    assert answers.shape == (5, 2) and answers.min() >= 0 and answers.max() < MODEL.decoder.vocab_size
