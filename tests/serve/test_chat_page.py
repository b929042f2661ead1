"""The chat page's server: its answers are the engine's, and what it does not take."""

import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quecc_jax.errors import UserError
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Question
from quecc_jax.generate.sampling import Sampling
from quecc_jax.serve.chat_page import KEPT, Page
from quecc_jax.serve.own_backend import own_backend
from quecc_jax.serve.web.server import listen
from tests.commands.talker import QUESTIONS
from tests.data.notes import NOTED
from tests.serve.serving import LIMITS, call, front_of, png, served


@pytest.fixture
def server(engine: Engine) -> Iterator[tuple[Page, int]]:
    """The page's own object, and the port it is served at."""
    front = front_of(own_backend(engine))
    page = Page(front, "own")
    with served(front, page) as port:
        yield page, port


def ask(port: int, **asked: Any) -> list[dict[str, Any]]:
    status, body, headers = call(port, "POST", "/ask", json.dumps(asked).encode())
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream"), body
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


def test_what_is_not_a_small_image_is_refused(server):
    _, port = server
    tiff = io.BytesIO()
    Image.new("L", (4, 4)).save(tiff, "TIFF")
    for body, status, message in [
        (b"<svg onload=alert(1)>", 415, "no image of the kinds JPEG, PNG"),
        (tiff.getvalue(), 415, "no image of the kinds"),
        (png(2000, 600), 413, "2000 x 600 pixels, more than 1,000,000"),
        (os.urandom(200_001), 413, "200,001 bytes are more than the 200,000"),
        (png(40, 40)[:-30], 400, "cannot be read"),
        (png(900, 2), 400, "one side more than"),
    ]:
        found, reply, _ = call(port, "POST", "/image", body)
        assert (found, message in json.loads(reply)["error"]["message"]) == (status, True), reply


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
        assert reply.startswith(b"HTTP/1.1 " + status) and b'{"error":{"message":"' in reply


def test_words_that_the_tokenizer_does_not_know_are_told(engine, server, images):
    _, port = server
    text = "what color is the Giraffe, or the zebra, or the zebra?"
    said = "the model's tokenizer does not know 'Giraffe' 'zebra'; it reads the same token for any such word"
    assert ask(port, text=text)[-1]["told"] == said
    placed = engine.prompt(Question("is it a circle <image>?", (images[0],)))
    assert placed.unknown_words == ()


def test_a_image_with_a_large_note_is_an_image(server):
    _, port = server
    status, reply, _ = call(port, "POST", "/image", NOTED["png zTXt"]())
    assert status == 200 and json.loads(reply)["id"], reply


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
        (b'{"text": ""}', 400),
        (b'{"text": "x", "temperature": -1}', 400),
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
    said = "this server has no name 192.0.2.7:7860; start it with --host and that name or address"
    assert json.loads(reply)["error"]["message"] == said
    assert call(port, "GET", "/../../etc/passwd")[0] == 404
    status, _, headers = call(port, "GET", "/")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]


def test_only_the_newest_images_are_kept(server):
    _, port = server
    first = json.loads(call(port, "POST", "/image", png(20, 20))[1])["id"]
    for n in range(KEPT):
        assert call(port, "POST", "/image", png(21 + n, 20 + n % 2))[0] == 200
    assert call(port, "POST", "/ask", json.dumps({"text": "x", "images": [first]}).encode())[0] == 410


def test_the_address_must_be_free(server):
    _, port = server
    for host, number in (("127.0.0.1", port), ("203.0.113.1", 0), ("127.0.0.1", 99999)):
        with pytest.raises(UserError, match=f"--host {host} --port {number} cannot be listened at"):
            listen(host, number)


def test_a_first_image_that_is_none_is_refused(engine, images):
    front = front_of(own_backend(engine))
    with pytest.raises(UserError, match="the image to begin with: this is no image of the kinds"):
        Page(front, "own", b"not an image")
    with pytest.raises(UserError, match="the image to begin with: the image has 2000 x 600 pixels"):
        Page(front, "own", png(2000, 600))
    Page(front, "own", images[2].read_bytes()).check(front.backend)
    with pytest.raises(UserError, match="cannot be read"):
        Page(front, "own", png(40, 40)[:-30]).check(front.backend)
