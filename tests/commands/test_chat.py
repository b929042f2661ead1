"""The chat in the terminal, its server, and its page in a browser."""

import contextlib
import copy
import dataclasses
import http.client
import io
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quecc_jax.commands import chat as terminal
from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.generate.sampling import Sampling
from quecc_jax.serve.chat_web import KEPT, Page, make_server
from tests.browser import absent, browser
from tests.commands.talker import QUESTIONS, save_images, tiny_engine
from tests.data.notes import NOTED

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


@contextlib.contextmanager
def served(page: Page) -> Iterator[int]:
    """The port that the page is served at."""
    made = make_server(page, "127.0.0.1", 0)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made.server_address[1]
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


@pytest.fixture
def server(engine) -> Iterator[tuple[Page, int]]:
    """The page's own object, and the port it is served at."""
    page = Page(engine, LIMITS, "own", max_bytes=200_000, max_pixels=1_000_000)
    with served(page) as port:
        yield page, port


def call(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, Any]:
    """Status, body and headers of a reply."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body or None, given)
    reply = connection.getresponse()
    return reply.status, reply.read(), reply.headers


def ask(port: int, **asked: Any) -> list[dict[str, Any]]:
    status, body, headers = call(port, "POST", "/ask", json.dumps(asked).encode())
    assert status == 200 and headers["Content-Type"] == "text/event-stream", body
    return [json.loads(event.removeprefix("data: ")) for event in body.decode().split("\n\n") if event]


def upload(port: int, path: Path) -> str:
    status, body, _ = call(port, "POST", "/image", path.read_bytes())
    assert status == 200, body
    return json.loads(body)["id"]


def test_the_server_answers_as_the_engine_does(engine, server, images):
    _, port = server
    name = upload(port, images[2])
    assert upload(port, images[2]) == name != upload(port, images[0])
    *pieces, last = ask(port, text=QUESTIONS[1], images=[name], history=[QUESTIONS[0], "red"])
    question = Question(QUESTIONS[1], (engine.image(images[2]),), (QUESTIONS[0], "red"))
    assert [last["answer"]] == engine.answers([question], LIMITS)
    assert "".join(piece["text"] for piece in pieces) == last["answer"] and len(pieces) > 1
    assert last["query"] == QUESTIONS[0]
    assert last["usage"]["visual_tokens"] == 4 and last["usage"]["new_tokens"] == 6
    weights = engine.attention(question)
    assert weights is not None
    mean = np.array(last["attention"])
    assert mean.shape == (1, 4, 16) and last["squares"] == 2
    np.testing.assert_allclose(mean, weights.mean(axis=2).reshape(1, 4, 16), atol=1e-5)
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-4)


def test_temperature_and_seed_of_the_page_are_those_of_the_engine(engine, server):
    _, port = server
    drawn = [ask(port, text=QUESTIONS[0], temperature=3.0, seed=seed)[-1]["answer"] for seed in (1, 1, 2)]
    wanted = engine.answers([Question(QUESTIONS[0])], LIMITS._replace(sampling=Sampling(3.0), seed=1))
    assert drawn[:2] == 2 * wanted and drawn[2] != drawn[0]
    (greedy,) = engine.answers([Question(QUESTIONS[0])], LIMITS)
    assert ask(port, text=QUESTIONS[0], temperature=0)[-1]["answer"] == greedy


def png(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (width, height)).save(out, "PNG")
    return out.getvalue()


def test_what_is_not_a_small_image_is_refused(server):
    _, port = server
    tiff = io.BytesIO()
    Image.new("L", (4, 4)).save(tiff, "TIFF")
    for body, status, message in [
        (b"<svg onload=alert(1)>", 415, "no image of the kinds JPEG, PNG"),
        (tiff.getvalue(), 415, "no image of the kinds"),
        (png(2000, 600), 413, "2000 x 600 pixels, more than 1,000,000"),
        (os.urandom(200_001), 413, "200,001 bytes are more than the 200,000"),
        (png(40, 40)[:-30], 422, "cannot be read"),
        (png(900, 2), 422, "one side more than"),
    ]:
        found, reply, _ = call(port, "POST", "/image", body)
        assert (found, message in json.loads(reply)["error"]) == (status, True), reply


def test_a_sender_that_reads_nothing_before_it_has_sent_all_hears_why(server):
    """As browsers do; the body is more than the sockets hold."""
    _, port = server
    for path, size, status in (
        ("/image", 20_000_000, b"413"),
        ("/ask", 20_000_000, b"413"),
        ("/no", 9, b"404"),
    ):
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {size}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head.encode() + bytes(size))
            reply = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert reply.startswith(b"HTTP/1.1 " + status) and b'{"error": "' in reply


def test_words_that_the_tokenizer_does_not_know_are_told(engine, server, images):
    _, port = server
    text = "what color is the Giraffe, or the zebra, or the zebra?"
    said = "the model's tokenizer does not know 'Giraffe' 'zebra'; it reads the same token for any such word"
    assert ask(port, text=text)[-1]["told"] == said
    _, _, err = talk_through(engine, text, QUESTIONS[0])
    first, second = err.splitlines()
    assert first.endswith(f" tokens/s; {said}]") and "does not know" not in second
    placed = engine.prompt(Question("is it a circle <image>?", (images[0],)))
    assert placed.unknown_words == ()


def test_a_image_with_a_large_note_is_an_image(server):
    _, port = server
    status, reply, _ = call(port, "POST", "/image", NOTED["png zTXt"]())
    assert (status, json.loads(reply)["width"], json.loads(reply)["height"]) == (200, 60, 40), reply


def test_malformed_questions_are_refused(server, images):
    _, port = server
    for asked, status in [
        (b"{", 400),
        (b"[]", 400),
        (b'{"text": 3}', 400),
        (b'{"more": 1}', 400),
        (b'{"history": [1]}', 400),
        (b'{"query": "last"}', 400),
        (b'{"text": "x", "seed": -1}', 400),
        (b'{"text": "x", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"text": "x", "temperature": NaN}', 400),
        (b'{"text": "x", "temperature": 1e999}', 400),
        (b'{"text": "x", "text": "y"}', 400),
        (b'{"text": "' + b"\\ud800" + b'"}', 400),
        (b"[" * 9999, 400),
        (b"\xff\xfe", 400),
        (b"null", 400),
        (b"", 400),
        (b'{"images": ["abc"]}', 410),
        (b'{"text": ""}', 422),
        (b'{"text": "x", "temperature": -1}', 422),
        (b"x" * 300_000, 413),
    ]:
        found, reply, _ = call(port, "POST", "/ask", asked)
        assert found == status and "error" in json.loads(reply), (asked[:40], reply)
    assert ask(port, text=QUESTIONS[0])[-1]["answer"], "it still answers"


def test_other_sites_and_other_names_are_refused(server):
    _, port = server
    own = f"127.0.0.1:{port}"
    for headers, status in [
        ({"Host": "evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Host": own, "Origin": "http://["}, 403),
        ({"Host": f"evil.example:{port}"}, 403),
        ({"Host": own}, 200),
        ({"Host": f"localhost:{port}"}, 200),
        ({"Host": own, "Origin": "http://evil.example"}, 403),
        ({"Host": own, "Origin": "null"}, 403),
        ({"Host": own, "Origin": f"http://{own}"}, 200),
    ]:
        assert call(port, "GET", "/settings", b"", **headers)[0] == status, headers
    _, reply, _ = call(port, "GET", "/", b"", Host="192.0.2.7:7860")
    said = "this page has no name 192.0.2.7:7860; start it with --host and that name or address"
    assert json.loads(reply)["error"] == said
    assert call(port, "GET", "/../../etc/passwd")[0] == 404
    status, _, headers = call(port, "GET", "/")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]


def test_only_the_newest_images_are_kept(server):
    page, port = server
    first = json.loads(call(port, "POST", "/image", png(20, 20))[1])["id"]
    for n in range(KEPT):
        page.upload(png(21 + n, 20 + n % 2))
    assert call(port, "POST", "/ask", json.dumps({"text": "x", "images": [first]}).encode())[0] == 410


def test_the_address_must_be_free(server, engine):
    _, port = server
    page = Page(engine, LIMITS, "own", 1, 1)
    for host, number in (("127.0.0.1", port), ("203.0.113.1", 0), ("127.0.0.1", 99999)):
        with pytest.raises(UserError, match=f"--host {host} --port {number} cannot be listened at"):
            make_server(page, host, number)


@pytest.mark.skipif(bool(absent()), reason=absent() or "a browser is here")
def test_a_page_begins_with_an_image_and_questions_to_click(engine, images, tmp_path):
    page = Page(engine, LIMITS, "own", 200_000, 1_000_000, images[2].read_bytes(), QUESTIONS[:2])
    with served(page) as port, browser(tmp_path / "profile") as window:
        window.open(f"http://127.0.0.1:{port}/")
        window.wait("document.querySelector('#drop canvas') !== null")
        for number, question in enumerate(QUESTIONS[:2], start=1):
            window.click(f"#offered button:nth-child({number})")
            window.wait("document.querySelectorAll('.usage').length === 1")
            (answer,) = engine.answers([Question(question, (engine.image(images[2]),))], LIMITS)
            assert window.run("return document.querySelector('.model .said').innerText") == answer
            assert window.run("return document.querySelector('.human .said').innerText") == question


@pytest.mark.skipif(bool(absent()), reason=absent() or "a browser is here")
@pytest.mark.parametrize(("aspect", "colour"), [("pad", [122, 116, 104]), ("square", [255, 0, 0])])
def test_a_wide_image_is_drawn_as_the_tower_sees_it(engine, tmp_path, aspect, colour):
    """The map lies over a square: with padding above a wide image, or with what is cropped to it."""
    file, cropping = io.BytesIO(), copy.copy(engine)
    Image.new("RGB", (60, 30), (255, 0, 0)).save(file, "PNG")
    data = dataclasses.replace(engine.config.data, image_aspect=aspect)
    cropping.config = dataclasses.replace(engine.config, data=data)
    page = Page(cropping, LIMITS, "own", 200_000, 1_000_000, file.getvalue())
    with served(page) as port, browser(tmp_path / "profile") as window:
        window.open(f"http://127.0.0.1:{port}/")
        window.wait("document.querySelector('#drop canvas') !== null")
        top = "document.querySelector('#drop canvas').getContext('2d').getImageData(360, 60, 1, 1).data"
        assert window.run(f"return [...{top}].slice(0, 3)") == colour


def test_a_first_image_that_is_none_is_refused(tmp_path, engine):
    with pytest.raises(UserError, match="no image of the kinds"):
        Page(engine, LIMITS, "own", 1000, 1000, b"not an image")
    with pytest.raises(UserError, match=r"a.png cannot be read \(No such file"):
        terminal.first_image(terminal.Options(checkpoint=tmp_path, image=tmp_path / "a.png", web=True))


@pytest.mark.skipif(bool(absent()), reason=absent() or "a browser is here")
def test_the_page_in_a_browser(engine, server, images, tmp_path):
    """An image is chosen, two turns are asked, the answers stream, and the attention is drawn."""
    _, port = server
    with browser(tmp_path / "profile") as page:
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
