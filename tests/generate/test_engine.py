"""The engine on the golden checkpoint: the original's answers, in batches, in pieces, with every limit."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quecc_jax.config import MeshConfig, RopeScaling
from quecc_jax.convert.run import import_weights
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import ADVANCE, BEGIN, Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.generate.sampling import Sampling
from quecc_jax.load import load_engine, load_vlm, with_decoding
from tests.golden_pack import unpack
from tests.jax_shim import compiled_programs

GOLDEN = Path(__file__).parents[1] / "golden" / "llava_tiny"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    unpack(GOLDEN / "arrays.xz", folder / "llava_tiny")
    import_weights(folder / "llava_tiny", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def engine(run_dir) -> Engine:
    config, params = load_vlm(run_dir)
    model = dataclasses.replace(config.model, dtype="float32", remat="none")
    return Engine(dataclasses.replace(config, model=model), params, chunk=4)


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((GOLDEN / "expected.json").read_text())["generate"]


@pytest.fixture(scope="module")
def questions(engine) -> dict[str, Question]:
    """The rows that the original continued."""
    rows = {row["id"]: row for row in json.loads((GOLDEN / "conversations.json").read_text())}
    return {
        name: Question(row["conversations"][0]["value"], (engine.image(GOLDEN / row["image"]),))
        for name, row in rows.items()
        if name in ("a", "b")
    }


def greedy_text(engine: Engine, wanted: dict) -> str:
    ids = wanted["greedy_ids"]
    return engine.tokenizer.decode(ids[ids[0] == engine.tokenizer.bos_token_id :])


def test_answers_are_the_originals_alone_and_in_a_batch_of_different_lengths(engine, questions, expected):
    new = {name: len(wanted["greedy_ids"]) for name, wanted in expected.items()}
    assert set(questions) == set(expected) and len({len(w["prompt_ids"]) for w in expected.values()}) > 1
    limits = Limits(max(new.values()))
    alone = [engine.answers([question], limits)[0] for question in questions.values()]
    # A third, of text alone, and a row of padding beside them.
    other = Question("Hello there, who are you?")
    *together, text = engine.answers([*questions.values(), other], limits)
    assert together == alone and text == engine.answers([other], limits)[0]
    for name, answer in zip(questions, alone, strict=True):
        assert answer.startswith(greedy_text(engine, expected[name])) and len(answer) > 3


def test_pieces_come_before_the_end_and_join_to_the_answer(engine, questions):
    run = engine.run(list(questions.values()), Limits(20))
    pieces = list(run)
    texts = ["".join(piece for row, piece in pieces if row == r) for r in range(2)]
    assert texts == engine.answers(list(questions.values()), Limits(20)) and len(pieces) >= 6
    for usage, question in zip(run.usage, questions.values(), strict=True):
        assert usage.visual_tokens == engine.config.model.visual_tokens
        assert usage.prompt_tokens > usage.visual_tokens + len(question.text) / 10
        assert 0 < usage.first_token_seconds <= usage.seconds
        assert usage.new_tokens == 20 and usage.ended_by == "length"


@pytest.mark.parametrize("new", [1, 2, 5, 7])
def test_an_answer_has_no_more_tokens_than_allowed(engine, questions, new):
    (whole,) = engine.answers([questions["a"]], Limits(20))
    run = engine.run([questions["a"]], Limits(new))
    assert whole.startswith(run.finish()[0]) and run.usage[0].new_tokens == new


def test_a_stop_text_ends_one_row_and_not_its_neighbours(engine, questions):
    both = list(questions.values())
    first, second = engine.answers(both, Limits(20))
    stop = next(first[i : i + 2] for i in range(3, len(first)) if first[i : i + 2] not in second)
    run = engine.run(both, Limits(20, stop=(stop,)))
    assert run.finish() == [first[: first.index(stop)].rstrip(), second]
    assert [usage.ended_by for usage in run.usage] == ["stop", "length"]
    assert run.usage[0].new_tokens < 20


def test_the_same_seed_gives_the_same_text(engine, questions):
    both = list(questions.values())

    def draw(seed: int) -> list[str]:
        return engine.answers(both, Limits(12, sampling=Sampling(1.5, top_k=40), seed=seed))

    assert draw(0) == draw(0) != draw(1)
    assert engine.answers(both[:1], Limits(12, sampling=Sampling(1.5, top_k=40), seed=0)) == draw(0)[:1]
    assert engine.answers(both, Limits(12, sampling=Sampling(0.0))) == engine.answers(both, Limits(12))


def test_programs_are_compiled_once_per_bucket(engine):
    def ask(words: int, new: int) -> None:
        engine.answers([Question("so " * words)], Limits(new))

    def programs() -> list[int]:
        return [compiled_programs(program) for program in (BEGIN, ADVANCE)]

    ask(2, 3)
    before = programs()
    ask(4, 9)
    ask(1, 20)
    assert programs() == before
    # Longer than any other test asks for, which share these programs.
    ask(1, 300)
    assert programs() == [n + 1 for n in before]


def test_a_question_of_the_conversation_conditions_the_compressor(engine, questions):
    """The first turn's words by default, as in training; the latest turn's where asked."""
    image = questions["a"].images
    first = Question("What is this?", image)
    later = Question("And what colour is the sky above it?", image, ("What is this?", "A house."))
    maps = [
        engine.attention(q)
        for q in (first, later, later._replace(query="latest"), Question(later.text, image))
    ]
    assert maps[0].shape[:2] == (1, engine.config.model.visual_tokens)
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_allclose(maps[2], maps[3], atol=1e-6)
    assert np.abs(maps[0] - maps[2]).max() > 1e-5
    assert engine.answers([later], Limits(8)) != engine.answers([first], Limits(8))


def test_a_image_is_encoded_once_for_all_its_questions(engine, questions):
    before = engine.reuse.counted["images"].misses
    image = engine.image(Image.new("RGB", (30, 20), "teal"))
    for text in ("What is this?", "Which colour?", "What is this?"):
        engine.answers([Question(text, (image,))], Limits(2))
    assert engine.reuse.counted["images"].misses == before + 1


def test_a_image_is_decoded_as_the_run_says(engine, run_dir, tmp_path):
    image = Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "a.png", exif=exif)
    stored, turned = (engine.image(one).key for one in (image, tmp_path / "a.png"))
    assert stored != turned
    original = Engine(with_decoding(engine.config, "original"), engine.params)
    assert original.image(tmp_path / "a.png").key == stored


def test_eight_devices_answer_as_one_does(run_dir, engine, questions, monkeypatch):
    spread = load_engine(run_dir, MeshConfig(4, 1, 2))
    model = dataclasses.replace(spread.config.model, dtype="float32", remat="none")
    assert model == engine.config.model or spread.config.model.dtype == "bfloat16"
    over = Engine(
        dataclasses.replace(spread.config, model=model),
        load_vlm(run_dir, spread.mesh)[1],
        mesh=spread.mesh,
        chunk=4,
    )
    three = [*questions.values(), Question("Hello there, who are you?")]
    assert over.answers(three, Limits(12)) == engine.answers(three, Limits(12))


@pytest.mark.parametrize(
    "question, message",
    [
        (Question(""), "the question is empty; ask something"),
        (Question("  \n"), "the question is empty"),
        (Question("<image>\nwhat?"), "0 images but 1 <image> placeholders"),
        (Question("word " * 3000), "tokens but data.max_length is"),
        (Question("and?", (), ("what?",)), "history ends with a question"),
    ],
)
def test_what_cannot_be_asked_is_said_at_once(engine, question, message):
    with pytest.raises(UserError, match=message) as caught:
        engine.run([question], Limits(4))
    assert "\n" not in str(caught.value)


def test_tokens_without_an_embedding_are_refused(engine, run_dir, tmp_path):
    shutil.copytree(run_dir / "tokenizer", tmp_path / "longer")
    (tmp_path / "longer" / "added_tokens.json").write_text('{"<x>": 32000}')
    data = dataclasses.replace(engine.config.data, tokenizer=str(tmp_path / "longer"))
    longer = Engine(dataclasses.replace(engine.config, data=data), engine.params)
    with pytest.raises(UserError, match=r"'<x>' is token 32000 of .* has only 32000 embeddings"):
        longer.answers([Question("a <x> b")], Limits(1))
    limits, question = Limits(2), Question("a b")
    assert longer.answers([question], limits) == engine.answers([question], limits)


def test_images_beyond_the_models_number_are_refused_and_nothing_said_is_answered(engine, questions):
    (image,) = questions["a"].images
    assert engine.config.data.images_per_row == 1
    with pytest.raises(UserError, match=r"2 images are given.* at most 1 a question"):
        engine.run([Question("what?", (image, image))], Limits(4))
    # An image without words: the compressor reads the word "image", as in training.
    assert engine.answers([Question("", (image,))], Limits(4)) != [""]
    with pytest.raises(UserError, match=r"nowhere.png does not exist"):
        engine.image("nowhere.png")


def test_the_cache_does_not_change_which_frequencies_a_longrope_model_has(engine):
    scaling = RopeScaling("longrope", original_length=40, short_factors=(1.0,), long_factors=(2.0,))
    decoder = dataclasses.replace(engine.config.model.decoder, rope_scaling=scaling)
    model = dataclasses.replace(engine.config.model, decoder=decoder)
    other = object.__new__(Engine)
    other.config, other.chunk = dataclasses.replace(engine.config, model=model), 4
    assert other.room(20, 16) == (20, 20)
    assert other.room(30, 16) == (32, 32)
    assert engine.room(20, 16) == (32, 32) and engine.room(33, 40) == (48, 48)
