"""Likelihoods of answers against a plain sum over full passes, and against what generation says."""

import dataclasses

import jax
import numpy as np
import pytest

from quecc_jax.data.batch import Batch
from quecc_jax.data.images import load_pixels
from quecc_jax.data.text.conversation import query_ids
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.evaluate.answers import answer_questions, question_engine
from quecc_jax.evaluate.likelihood import log_likelihoods
from quecc_jax.generate.questions import Question
from quecc_jax.load import load_vlm
from quecc_jax.models.vlm import VLM
from tests.evaluate.standins import png
from tests.evaluate.word_model import word_run
from tests.laid_out import encode

TEXTS = ("what color is it?", "is it red?", "why?")
ANSWERS = ("red", "blue two circle", "green")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    run = word_run(tmp_path_factory.mktemp("run"), [*TEXTS, "red blue two green circle square"])
    return load_vlm(run.out)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> list[Question]:
    """Two about an image each, in memory and in a file, and one about none."""
    path = tmp_path_factory.mktemp("pictures") / "1.png"
    path.write_bytes(png(1))
    return [
        Question(TEXTS[0], (png(0),), name="a"),
        Question(TEXTS[1], (str(path),), name="b"),
        Question(TEXTS[2], name="c"),
    ]


def plain(loaded, question: str, answer: str, image) -> float:
    """The sum by NumPy over one row, token by token."""
    config, params = loaded
    tokenizer, v = load_tokenizer(config.data.tokenizer), config.model.visual_tokens
    row = {
        "conversations": [
            {"from": "human", "value": ("<image>\n" if image else "") + question},
            {"from": "gpt", "value": answer},
        ]
    }
    made = encode(row | ({"image": "x"} if image else {}), tokenizer, config.data, v)
    length = len(made.tokens)
    side = config.model.vision.image_size
    pixels = load_pixels(image, config.model.vision) if image else np.zeros((side, side, 3), np.uint8)
    batch = Batch(
        tokens=made.tokens[None],
        slots=made.slots[None],
        labels=made.labels[None],
        positions=np.arange(length, dtype=np.int32)[None],
        segments=np.ones((1, length), np.int32),
        queries=made.queries[None] if image else np.zeros((1, 1), np.int32),
        query_segments=np.full((1, len(made.queries) or 1), int(bool(image)), np.int32),
        query_ends=made.query_ends[None] if image else np.full((1, 1), -1, np.int32),
        pixels=pixels[None, None],
    )

    @jax.jit
    def forward(params, batch):
        model = VLM(config.model)
        hidden = model.apply({"params": params}, batch)
        return model.apply({"params": params}, hidden, method=VLM.logits)

    logits = np.asarray(forward(params, batch)[0], np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    labelled = np.flatnonzero(made.labels >= 0)
    assert made.labels[labelled[-1]] == tokenizer.eos_token_id
    return sum(logs[place - 1, made.labels[place]] for place in labelled[:-1])


def test_likelihoods_are_sums_over_the_answers_tokens(loaded, questions, tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    engine = question_engine(*loaded)
    found = log_likelihoods(engine, zip(questions, ANSWERS, strict=True), batch_size=2)
    images = [tmp_path / "0.png", questions[1].images[0], None]
    # The first would compile one more program and shows nothing that the second does not.
    wanted = [plain(loaded, TEXTS[n], ANSWERS[n], images[n]) for n in (1, 2)]
    np.testing.assert_allclose([value for value, _ in found[1:]], wanted, rtol=2e-4)
    assert len({round(value, 3) for value, _ in found}) == 3
    assert log_likelihoods(engine, [], batch_size=2) == []


def test_what_generation_says_is_greedy_and_other_answers_are_not(loaded, questions):
    said, engine = [""] * 3, question_engine(*loaded)
    answer_questions(engine, questions, max_new_tokens=2, batch_size=2, keep=said.__setitem__)
    assert all(said)
    for answers, expected in ((said, True), (["square " + answer for answer in said], False)):
        found = log_likelihoods(engine, zip(questions, answers, strict=True), batch_size=2)
        assert [greedy for _, greedy in found] == [expected] * 3


def test_a_question_that_its_template_leaves_out_is_read_whole_by_the_compressor(loaded):
    """Template plain has no words of the human, so that a row is shorter than its question."""
    config, params = loaded
    data = dataclasses.replace(config.data, template="plain", query_length=0)
    config = dataclasses.replace(config, data=data)
    engine, question = question_engine(config, params), " ".join(["is it red what color"] * 10)
    batch = engine.batch([engine.prompt(Question(question, (png(0),)))], 32)
    seen = batch.queries[0][: batch.query_ends[0, 0] + 1]
    whole, cut = query_ids(question, load_tokenizer(config.data.tokenizer), config.data)
    assert cut == 0 and len(whole) == 51
    assert seen.tolist() == whole.tolist()


def test_an_answer_that_does_not_fit_is_an_error(loaded, questions):
    with pytest.raises(UserError, match=r"question c: it has \d+ tokens but data\.max_length is 96"):
        log_likelihoods(question_engine(*loaded), [(questions[2], "red " * 100)], batch_size=1)
