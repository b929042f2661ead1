"""The chat page in a browser."""

import copy
import dataclasses
import io
import os
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from PIL import Image

from quecc_jax.generate.questions import Question, Usage
from quecc_jax.generate.scheduler import Scheduler
from quecc_jax.serve.app import Front
from quecc_jax.serve.backend import Asked, Busy
from quecc_jax.serve.chat_page import Page
from quecc_jax.serve.own_backend import OwnBackend, own_backend
from quecc_jax.serve.web.guards import Access
from tests.browser import absent, browser
from tests.commands.talker import QUESTIONS
from tests.serve.serving import LIMITS, MODEL, SMALL, front_of, served

pytestmark = pytest.mark.skipif(bool(absent()), reason=absent() or "a browser is here")


def test_a_page_begins_with_an_image_and_questions_to_click(engine, images, tmp_path):
    front = front_of(own_backend(engine))
    page = Page(front, "own", images[2].read_bytes(), QUESTIONS[:2])
    with served(front, page) as port, browser(tmp_path / "profile") as window:
        window.open(f"http://127.0.0.1:{port}/")
        window.wait("document.querySelector('#drop canvas') !== null")
        for number, question in enumerate(QUESTIONS[:2], start=1):
            window.click(f"#offered button:nth-child({number})")
            window.wait("document.querySelectorAll('.usage').length === 1")
            (answer,) = engine.answers([Question(question, (engine.image(images[2]),))], LIMITS)
            assert window.run("return document.querySelector('.model .said').innerText") == answer
            assert window.run("return document.querySelector('.human .said').innerText") == question


@pytest.mark.parametrize(("aspect", "colour"), [("pad", [122, 116, 104]), ("square", [255, 0, 0])])
def test_a_wide_image_is_drawn_as_the_tower_sees_it(engine, tmp_path, aspect, colour):
    """The map lies over a square: with padding above a wide image, or with what is cropped to it."""
    file, cropping = io.BytesIO(), copy.copy(engine)
    Image.new("RGB", (60, 30), (255, 0, 0)).save(file, "PNG")
    data = dataclasses.replace(engine.config.data, image_aspect=aspect)
    cropping.config = dataclasses.replace(engine.config, data=data)
    front = front_of(own_backend(cropping))
    with served(front, Page(front, "own", file.getvalue())) as port, browser(tmp_path / "profile") as window:
        window.open(f"http://127.0.0.1:{port}/")
        window.wait("document.querySelector('#drop canvas') !== null")
        top = "document.querySelector('#drop canvas').getContext('2d').getImageData(360, 60, 1, 1).data"
        assert window.run(f"return [...{top}].slice(0, 3)") == colour


def test_the_page_in_a_browser(engine, images, tmp_path):
    """An image is chosen, two turns are asked, the answers stream, and the attention is drawn."""
    front = front_of(own_backend(engine))
    with served(front, Page(front, "own")) as port, browser(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.wait("document.querySelector('#about').textContent.includes('4 visual tokens')")
        page.type("#file", str(images[2]))
        page.wait("document.querySelector('#drop canvas') !== null")
        history: tuple[str, ...] = ()
        for turn, question in enumerate(QUESTIONS[:2]):
            page.type("#text", question)
            page.click("#send")
            page.wait(f"document.querySelectorAll('.usage').length === {turn + 1}")
            asked = Question(question, (engine.image(images[2]),), history)
            (answer,) = engine.answers([asked], LIMITS)
            shown = page.run("return [...document.querySelectorAll('.model .said')].map(e => e.innerText)")
            assert shown[-1] == answer
            history = (*history, question, answer)
        usage = page.run("return document.querySelectorAll('.usage')[1].innerText")
        assert re.search(r"6 tokens after \d+ \(4 visual\); first after [\d.]+ s, then", usage)

        pixels = "return document.querySelector('#drop canvas').toDataURL()"
        drawn = page.run(pixels)
        page.click("#heat")
        plain = page.run(pixels)
        page.click("#heat")
        assert page.run(pixels) == drawn != plain
        page.hover("#drop canvas", 40, -40)
        page.wait("document.querySelector('#token').textContent.startsWith('visual token 2 of 4, row 1')")
        assert page.run(pixels) != drawn

        # Markup in an answer or a question is text.
        page.type("#text", "<img src=x onerror=alert(1)>")
        page.click("#send")
        page.wait("document.querySelectorAll('.human').length === 3")
        page.wait("!document.querySelector('#send').hidden")
        assert page.run("return document.querySelectorAll('#log img').length") == 0
        if folder := os.environ.get("CHAT_SCREENSHOTS"):
            page.screenshot(Path(folder, "chat.png"))

        (tmp_path / "wrong.png").write_text("not an image")
        page.type("#file", str(tmp_path / "wrong.png"))
        page.wait("document.querySelector('.error') !== null")
        assert "no image of the kinds" in page.run("return document.querySelector('.error').innerText")
        asked_for = page.run("return performance.getEntriesByType('resource').map(e => new URL(e.name).host)")
        assert set(asked_for) == {f"127.0.0.1:{port}"}
        assert [m for m in page.log() if "Security" in m or "Uncaught" in m] == []


class Full(OwnBackend):
    """A backend whose queue is full until it is told otherwise."""

    full = True

    async def answer(self, asked: Asked) -> AsyncGenerator[str | Usage]:
        if self.full:
            raise Busy(7)
        async for item in super().answer(asked):
            yield item


def test_a_full_queue_is_said_and_the_question_stays(engine, tmp_path):
    backend = Full(Scheduler(engine))
    front = front_of(backend)
    with served(front, Page(front, "own")) as port, browser(tmp_path / "profile") as page:
        page.open(f"http://127.0.0.1:{port}/")
        page.wait("document.querySelector('#about').textContent.includes('4 visual tokens')")
        page.type("#text", QUESTIONS[0])
        page.click("#send")
        page.wait("document.querySelector('.error') !== null")
        said = page.run("return document.querySelector('.error .said').innerText")
        assert said == "too many questions are waiting; ask again in 7 s"
        assert page.run("return document.querySelector('#text').value") == QUESTIONS[0]
        backend.full = False
        page.wait("!document.querySelector('#send').hidden")
        page.click("#send")
        page.wait("document.querySelectorAll('.usage').length === 1")
        (answer,) = engine.answers([Question(QUESTIONS[0])], LIMITS)
        assert page.run("return [...document.querySelectorAll('.model .said')].at(-1).innerText") == answer


def test_a_page_that_is_open_before_the_model_is_there_waits_for_it(engine, images, tmp_path):
    front = Front(MODEL, LIMITS, SMALL, Access(("127.0.0.1",)))
    page = Page(front, "own", images[2].read_bytes())
    with served(front, page) as port, browser(tmp_path / "profile") as window:
        window.open(f"http://127.0.0.1:{port}/")
        window.wait("document.querySelector('#about').textContent.includes('still being loaded')")
        front.ready(own_backend(engine))
        window.wait("document.querySelector('#about').textContent.includes('4 visual tokens')")
        window.wait("document.querySelector('#drop canvas') !== null")
