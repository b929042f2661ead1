"""The chat in the terminal; its page is tested in tests/serve."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from quecc_jax.commands import chat as terminal
from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from tests.commands.talker import QUESTIONS, save_images, tiny_engine

LIMITS = Limits(6)


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    return tiny_engine(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    return save_images(tmp_path_factory.mktemp("images"))


def talk_through(engine: Engine, *lines: str, **settings: Any) -> tuple[terminal.Chat, str, str]:
    """The conversation after some lines, and what was printed on stdout and stderr."""
    talk, said = terminal.Chat(engine, LIMITS, settings.pop("query", "own")), iter(lines)
    out, err = io.StringIO(), io.StringIO()

    def read(prompt: str) -> str:
        with contextlib.suppress(StopIteration):
            return next(said)
        raise EOFError

    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        terminal.chat(talk, read)
    return talk, out.getvalue(), err.getvalue()


def test_turns_of_the_terminal_are_those_of_the_engine(engine, images):
    talk, out, err = talk_through(engine, f"/image {images[2]}", QUESTIONS[0], "", QUESTIONS[1])
    image = (engine.image(images[2]),)
    (first,) = engine.answers([Question(QUESTIONS[0], image)], LIMITS)
    (second,) = engine.answers([Question(QUESTIONS[1], image, (QUESTIONS[0], first))], LIMITS)
    assert talk.history == (QUESTIONS[0], first, QUESTIONS[1], second)
    assert first in out and second in out and first != second
    assert re.search(r"\[6 tokens after \d+ \(4 visual\); first after [\d.]+ s, then [\d.]+ tokens/s\]", err)


def test_commands(engine, images):
    talk, out, err = talk_through(
        engine,
        "/help",
        f"/image {images[0]}",
        f"/add '{images[1]}'",
        QUESTIONS[0],
        "/reset",
        f"/add {images[2]}",
        "/quit",
        QUESTIONS[0],
    )
    assert "/image FILE" in out and "a blue one.png' is image 2" not in out
    assert "image 2; ask about it" in out and "a new conversation about the same images" in out
    assert talk.history == () and len(talk.images) == 2
    assert "at most 2 images a question" in err


@pytest.mark.parametrize(
    "line, message",
    [
        ("/imge x.png", "/imge is not a command; /help lists them"),
        ("/image", "/image needs a file"),
        ("/image nowhere.png", "nowhere.png does not exist"),
        ("/image {folder}", "is a directory|cannot be opened"),
        ("<image> what?", "0 images but 1 <image> placeholders"),
        ("what? " * 60, "tokens but data.max_length is 96"),
        ("what \udcff?", "not UTF-8 text"),
    ],
)
def test_a_mistake_is_one_line_and_the_conversation_goes_on(engine, images, line, message):
    line = line.format(folder=images[0].parent)
    talk, _, err = talk_through(engine, line, QUESTIONS[0])
    said = err.splitlines()
    assert said[0].startswith("error: ") and re.search(message, said[0], re.IGNORECASE), err
    assert len(said) == 2 and len(talk.history) == 2


@pytest.mark.parametrize(
    "options, message",
    [
        (["--port", "80"], "--port goes with --web; add it or leave this out"),
        (["--host", "0.0.0.0"], "--host goes with --web"),
        (["--max-upload-mb", "5"], "--max-upload-mb goes with --web"),
        (["--max-pixels", "5"], "--max-pixels goes with --web"),
        (["--suggest", "what?"], "--suggest goes with --web"),
        (["--open"], "--open goes with --web"),
        (["--web", "--max-upload-mb", "-1"], "--max-upload-mb is -1; give a positive size"),
        (["--web", "--max-upload-mb", "nan"], "--max-upload-mb is nan; give a positive size"),
        (["--web", "--max-upload-mb", "inf"], "--max-upload-mb is inf; give a positive size"),
        (["--web", "--max-pixels", "0"], "--max-pixels is 0; give at least 1"),
    ],
)
def test_mistakes_of_its_options_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as caught:
        execute("chat", ["--checkpoint", "nowhere", *options])
    assert "\n" not in str(caught.value)


def test_a_conversation_that_no_longer_fits_says_what_to_do(engine):
    talk, _, err = talk_through(engine, *4 * ["what color is the shape? " * 3])
    assert "; /reset begins anew" in err and 2 <= len(talk.history) < 8


def test_the_latest_question_may_condition_the_compressor(engine, images):
    lines = (f"/image {images[2]}", QUESTIONS[0], QUESTIONS[1])
    talk, _, _ = talk_through(engine, *lines, query="latest")
    asked = Question(QUESTIONS[1], talk.images, talk.history[:2], "latest")
    assert engine.answers([asked], LIMITS) == [talk.history[3]]


def test_words_that_the_tokenizer_does_not_know_are_told(engine):
    text = "what color is the Giraffe, or the zebra, or the zebra?"
    said = "the model's tokenizer does not know 'Giraffe' 'zebra'; it reads the same token for any such word"
    _, _, err = talk_through(engine, text, QUESTIONS[0])
    first, second = err.splitlines()
    assert first.endswith(f" tokens/s; {said}]") and "does not know" not in second


def test_a_first_image_that_cannot_be_read_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match=r"a.png cannot be read \(No such file"):
        terminal.first_image(terminal.Options(checkpoint=tmp_path, image=tmp_path / "a.png", web=True))
