"""`--explain`: what is drawn is the compressor's attention, for two questions."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from quecc_jax import load
from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.evaluate.attention import patch_map
from quecc_jax.evaluate.explain import explain
from quecc_jax.generate.questions import Limits, Question
from tests.commands.talker import QUESTIONS, save_images, tiny_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return tiny_engine(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return save_images(tmp_path_factory.mktemp("pictures"))[2]


def test_the_maps_of_both_questions_and_their_difference_are_drawn(engine, image, tmp_path, monkeypatch):
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, path, **options: (drawn.update(figure=self), path.write_bytes(b"png"), None)[-1],
    )
    question = Question(QUESTIONS[0], (engine.image(image),))
    explain(engine, question, QUESTIONS[1], Limits(4), tmp_path / "out.png")
    panels = drawn["figure"].axes[:4]
    assert all(len(panel.lines) == 2 for panel in panels[1:])
    maps = [np.asarray(panel.images[1].get_array()) for panel in panels[1:]]
    for shown, text in zip(maps, QUESTIONS[:2], strict=False):
        weights = engine.attention(question._replace(text=text))
        np.testing.assert_allclose(shown, patch_map(weights[0]), rtol=1e-5)
        np.testing.assert_allclose(shown.reshape(2, 2, 2, 2).sum(axis=(1, 3)), 4, rtol=1e-5)
    np.testing.assert_allclose(maps[2], maps[0] - maps[1], atol=1e-6)
    assert np.abs(maps[2]).max() > 1e-4
    answers = [engine.answers([question._replace(text=text)], Limits(4))[0] for text in QUESTIONS[:2]]
    for panel, text, answer in zip(panels[1:], QUESTIONS, answers, strict=False):
        assert text in panel.get_title() and answer[:20] in panel.get_title()
    assert (tmp_path / "out.png").read_bytes() == b"png" and len(list(tmp_path.iterdir())) == 1


def test_the_command_writes_an_image(engine, image, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "load_engine", lambda *_: engine)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "generate",
            "--checkpoint",
            "run",
            "--image",
            str(image),
            "--question",
            "what is it?",
            "--max-new-tokens",
            "3",
            "--explain",
            str(tmp_path / "new" / "out.png"),
            "--other-question",
            QUESTIONS[1],
        ],
    )
    execute("generate", sys.argv[1:])
    wanted = engine.answers([Question("what is it?", (engine.image(image),))], Limits(3))
    assert capsys.readouterr().out == f"{wanted[0]}\n"
    with Image.open(tmp_path / "new" / "out.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 300


@pytest.mark.parametrize(
    "more, message",
    [
        ("--other-question why?", "--other-question goes with --explain"),
        ("--explain out.png", "--explain draws on an image"),
        ("--image {image} --explain out.txt", "give a name that ends in .png"),
        ("--temperature -1", "--temperature is -1"),
        ("--top-p 0", "--top-p is 0"),
        ("--image {image} --explain {image}/out.png", "cannot be written"),
        ("--image {image} --image {image} --image {image}", "3 images are given"),
    ],
)
def test_mistakes(engine, image, monkeypatch, capsys, more, message):
    monkeypatch.setattr(load, "load_engine", lambda *_: engine)
    arguments = ["--checkpoint", "run", "--question", "what?", *more.format(image=image).split()]
    monkeypatch.setattr(sys, "argv", ["generate", *arguments])
    with pytest.raises(UserError, match=message):
        execute("generate", sys.argv[1:])
    assert capsys.readouterr().out == ""


def test_a_model_that_does_not_attend_has_nothing_to_explain(image, tmp_path):
    plain = tiny_engine(tmp_path, name="none")
    with pytest.raises(UserError, match="this model has none"):
        explain(plain, Question("what?", (plain.image(image),)), "image", Limits(2), tmp_path / "x.png")


def test_tokens_that_see_the_whole_image_have_no_squares(image, tmp_path, monkeypatch):
    drawn: dict[str, Figure] = {}
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, path, **options: (drawn.update(figure=self), path.write_bytes(b"png"), None)[-1],
    )
    engine = tiny_engine(tmp_path, name="resampler")
    question = Question(QUESTIONS[0], (engine.image(image),))
    explain(engine, question, QUESTIONS[1], Limits(2), tmp_path / "out.png")
    panel = drawn["figure"].axes[1]
    weights = engine.attention(question)
    assert weights is not None and weights.shape == (1, 4, 2, 4, 4) and not panel.lines
    drawn_map = np.asarray(panel.images[1].get_array())
    np.testing.assert_allclose(drawn_map, weights[0].mean(axis=(0, 1)) * 16, rtol=1e-5)
