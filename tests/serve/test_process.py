"""The server as a process: from its command to its end."""

import contextlib
import json
import signal
import socket
import time
from pathlib import Path

import openai
import pytest

from quecc_jax.commands import serve as command
from quecc_jax.commands.cli import execute
from quecc_jax.errors import UserError
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_engine
from quecc_jax.serve.web.server import listen
from tests.serve.processes import ROOT, ended, port_of, started
from tests.serve.serving import call, client, eventually, said

MODEL = ROOT / "examples/model"
QUESTION = "what color is the shape in row 1, column 1?"
SLOW = """
import sys, time
from quecc_jax.errors import run_cli
from quecc_jax.serve.run import serve
from quecc_jax.train.run_dir import load_run_config
from tests.serve.serving import SMALL, Slow
from quecc_jax.serve.app import Front
from quecc_jax.generate.questions import Limits

def load():
    time.sleep(float(sys.argv[2]))
    return Slow(load_run_config("examples/model"), pause=0.1)

front = Front("tiny", Limits(6), SMALL)
run_cli(lambda: serve(front, None, load, "127.0.0.1", int(sys.argv[1]), grace=float(sys.argv[3])))
"""


def free_port() -> int:
    with listen("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


def test_the_command_serves_a_run_and_ends_well(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("one\n\ntwo\n")
    options = [
        "--checkpoint",
        str(MODEL),
        "--port",
        "0",
        "--api-key-file",
        str(keys),
        "--max-new-tokens",
        "8",
        "--slots",
        "2",
    ]
    with started("-m", "launch.serve", *options) as process:
        port = port_of(process)
        ask = client(port, "two").chat.completions.create
        image = ROOT / "examples/mosaic-1.png"
        found = ask(model="model", messages=said(QUESTION, image))
        engine = load_engine(MODEL)
        (wanted,) = engine.answers([Question(QUESTION, (image,))], Limits(8))
        assert found.choices[0].message.content == wanted
        with pytest.raises(openai.AuthenticationError):
            client(port, "three").models.list()
        assert json.loads(call(port, "GET", "/healthz")[1]) == {"status": "ok"}
        told = [f"compiling for {count} at a time, of up to 2\n" for count in ("1 question", "2 questions")]
        assert ended(process, signal.SIGTERM) == (0, "".join(told))


def test_the_chat_serves_its_page_and_is_interrupted():
    image = ROOT / "examples/mosaic-1.png"
    options = [
        "--checkpoint",
        str(MODEL),
        "--web",
        "--port",
        "0",
        "--image",
        str(image),
        "--suggest",
        QUESTION,
    ]
    with started("-m", "launch.chat", *options) as process:
        port = port_of(process)
        settings = json.loads(call(port, "GET", "/settings")[1])
        assert settings["has_image"] and settings["questions"] == [QUESTION]
        assert call(port, "GET", "/image")[1] == image.read_bytes()
        status, page, headers = call(port, "GET", "/")
        assert status == 200 and b"<title>Chat" in page and "sha256-" in headers["Content-Security-Policy"]
        # Clients of the API are answered beside it.
        assert client(port).models.list().data[0].id == "model"
        assert ended(process, signal.SIGINT) == (130, "interrupted\n")


def test_it_listens_while_it_loads_and_says_so():
    port = free_port()
    with started("-c", SLOW, str(port), "3", "0") as process:

        def health() -> bytes:
            with contextlib.suppress(OSError):
                return call(port, "GET", "/healthz")[1]
            return b""

        eventually(lambda: health() == b'{"status":"loading"}')
        with pytest.raises(openai.InternalServerError, match="still being loaded") as caught:
            client(port).chat.completions.create(model="tiny", messages=said("x"))
        assert caught.value.code == "loading" and caught.value.response.headers["retry-after"]
        eventually(lambda: health() == b'{"status":"ok"}')
        assert port_of(process) == port
        assert ended(process, signal.SIGTERM) == (0, "")


@pytest.mark.parametrize("grace", [0.0, 1.0])
def test_sigterm_ends_running_answers_with_an_error(grace):
    port = free_port()
    with started("-c", SLOW, str(port), "0", str(grace)) as process:
        port_of(process)
        stream = client(port).chat.completions.create(model="tiny", messages=said("x"), stream=True)
        pieces = iter(stream)
        for _ in range(4):
            next(pieces)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="the server is stopping; ask again"):
            while True:
                next(pieces)
        assert time.monotonic() - sent >= grace
        # The listener is gone.
        with pytest.raises(openai.APIConnectionError):
            client(port).models.list()
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")


def test_slow_clients_do_not_keep_a_server_from_its_end():
    port = free_port()
    with started("-c", SLOW, str(port), "0", "0") as process:
        port_of(process)
        body = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with contextlib.ExitStack() as stack:
            for sent in (b"", b"GET", *(body + f"Content-Length: {n}\r\n\r\n".encode() for n in (9, 10**9))):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                connection.sendall(sent)
            time.sleep(0.5)
            assert ended(process, signal.SIGTERM) == (0, "")


def test_a_run_that_cannot_be_loaded_ends_the_server(tmp_path):
    with started("-m", "launch.serve", "--checkpoint", str(tmp_path), "--port", "0") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and err.startswith("error: ") and err.count("\n") == 1 and out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slots", "0"], "--slots is 0; give at least 1"),
        (["--queue", "-1"], "--queue is -1; give at least 0"),
        (["--longest-answer", "10"], "--max-new-tokens is 64, more than --longest-answer 10"),
        (["--max-request-mb", "0"], "--max-request-mb is 0; give a positive number"),
        (["--held-mb", "nan"], "--held-mb is nan; give a positive number"),
        (["--answer-seconds", "inf"], "--answer-seconds is inf; give a positive number"),
        (["--grace", "-1"], "--grace is -1; give 0 or more"),
        (["--temperature", "-1"], "--temperature is -1.0; give 0"),
        (["--api-key-file", "nowhere"], r"--api-key-file nowhere cannot be read \(No such file"),
        (["--api-key-file", "nowhere", "--page"], "--page has no API key to send"),
        (["--allow-private-images"], "goes with --allow-images-from"),
        (["--allow-images-from", "http://x/"], "--allow-images-from http://x/ is no HOST or HOST:PORT"),
        (["--port", "99999"], "--port 99999 cannot be listened at"),
    ],
)
def test_mistakes_of_its_options_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message) as caught:
        execute("serve", ["--checkpoint", "nowhere", *options])
    assert "\n" not in str(caught.value)


def test_files_of_keys(tmp_path):
    file = tmp_path / "keys"
    for content, wanted in ((b"a\r\nb\n", ["a", "b"]), (b"  sk-a_b~ \n\n", ["sk-a_b~"])):
        file.write_bytes(content)
        assert command.api_keys(file) == wanted
    for content, message in (
        (b"\n \n", "holds no key"),
        (b"\xff", "is not UTF-8 text"),
        (b"a\nb c", "key 2 has spaces"),
        ("\u00e9".encode(), "key 1 has spaces or other than ASCII"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            command.api_keys(file)


def test_options_become_bounds():
    options = command.Options(
        checkpoint=Path("runs/a"),
        max_request_mb=200.0,
        connections=7,
        name=("a.example",),
        requests_per_minute=3,
        longest_answer=99,
    )
    front = command.front_of(options, Limits(), ["k"])
    assert front.bounds.request_bytes == front.bounds.held_bytes == 200_000_000
    assert (front.bounds.connections, front.bounds.answer_tokens, front.desk.model) == (7, 99, "a")
    assert front.access.names == ("127.0.0.1", "a.example") and front.access.per_minute == 3
