"""Prompt embeddings are what the engine's own decoder reads."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import PyTree
from PIL import Image

from quecc_jax.generate.embeddings import encoder_part, needs_layers, prompt_embeddings
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.models.vlm import VLM
from tests.commands.talker import QUESTIONS, tiny_engine

KINDS = {"quecc": {}, "avgpool": {}, "quecc_plus": {"fusion_layers": 1}, "llava_mini": {"fusion_layers": 1}}
ROOM, NEW = 48, 6


@pytest.fixture(scope="module", params=KINDS)
def engine(request, tmp_path_factory) -> Engine:
    return tiny_engine(tmp_path_factory.mktemp("talker"), request.param, **KINDS[request.param])


def questions(engine: Engine) -> list[Question]:
    red, blue = (engine.image(Image.new("RGB", (24, 24), colour)) for colour in ("red", "blue"))
    return [
        Question(QUESTIONS[0], (red,)),
        Question(QUESTIONS[1], (red, blue)),
        Question(QUESTIONS[2]),
        Question(QUESTIONS[2], (blue,), (QUESTIONS[0], "red")),
    ]


def greedy(engine: Engine) -> Callable[[np.ndarray], str]:
    """Text after a prompt's embeddings, each token by a whole pass over all before it."""
    model = VLM(engine.config.model, unrolled=True)
    table, index = np.asarray(engine.params["decoder"]["embedding"]), jnp.arange(ROOM)[None]

    def last(vlm: VLM, x: jax.Array, end: int) -> jax.Array:
        hidden, _ = vlm.decoder(x, index, (index < end).astype(jnp.int32))
        return vlm.logits(hidden[0, end - 1])

    @jax.jit
    def best(x: jax.Array, end: int) -> jax.Array:
        logits: PyTree = model.apply({"params": engine.params}, x, end, method=last)
        return jnp.argmax(logits)

    def text(embeddings: np.ndarray) -> str:
        x, end, ids = np.zeros((1, ROOM, embeddings.shape[1]), np.float32), len(embeddings), list[int]()
        x[0, :end] = embeddings
        while len(ids) < NEW and (token := int(best(x, end))) not in engine.ends.ids:
            ids.append(token)
            x[0, end], end = table[token], end + 1
        return engine.tokenizer.decode(ids).strip()

    return text


def test_a_decoder_goes_on_from_them_as_the_engine_does(engine):
    asked = questions(engine)
    made, go_on = prompt_embeddings(engine, [engine.prompt(one) for one in asked]), greedy(engine)
    assert {(one.dtype, one.shape[1]) for one in made} == {(np.dtype(np.float32), 16)}
    assert len({len(one) for one in made}) > 2
    assert [go_on(one) for one in made] == [one.strip() for one in engine.answers(asked, Limits(NEW))]


def test_layers_are_read_where_the_question_passes_through_them_alone(engine):
    part = encoder_part(engine.config.model, engine.params)
    has_layers = any(name.startswith("layers") for name in part["decoder"])
    assert has_layers == needs_layers(engine.config.model) == engine.config.model.compressor.reads_question
    prompts = [engine.prompt(question) for question in questions(engine)[:2]]
    # Without what was remembered by the whole engine.
    other = Engine(engine.config, part)
    for made, same in zip(prompt_embeddings(engine, prompts), prompt_embeddings(other, prompts), strict=True):
        np.testing.assert_array_equal(made, same)


@pytest.fixture(scope="module")
def fusing(tmp_path_factory) -> tuple[Engine, list[np.ndarray]]:
    """With each question's embeddings where it is asked alone."""
    engine = tiny_engine(tmp_path_factory.mktemp("talker"), "quecc_plus", fusion_layers=1)
    return engine, [prompt_embeddings(engine, [engine.prompt(one)])[0] for one in questions(engine)]


@settings(deadline=None, max_examples=8)
@given(order=st.lists(st.integers(0, 3), min_size=2, max_size=4))
def test_they_do_not_depend_on_a_question_s_company(fusing, order):
    engine, alone = fusing
    asked = questions(engine)
    together = prompt_embeddings(engine, [engine.prompt(asked[number]) for number in order], rows=4)
    for number, made in zip(order, together, strict=True):
        np.testing.assert_allclose(made, alone[number], atol=1e-5)


def test_scaled_embeddings_come_scaled(tmp_path):
    """Gemma's, which vLLM scales where it looks them up, and takes as they are where they are given."""
    plain = tiny_engine(tmp_path)
    decoder = dataclasses.replace(plain.config.model.decoder, scale_embeddings=True)
    model = dataclasses.replace(plain.config.model, decoder=decoder)
    scaled = Engine(dataclasses.replace(plain.config, model=model), plain.params)
    asked = Question(QUESTIONS[0])
    (once,), (more,) = (prompt_embeddings(one, [one.prompt(asked)]) for one in (plain, scaled))
    np.testing.assert_allclose(more, once * decoder.width**0.5, rtol=1e-6)
