"""Images by their address: of hosts that are allowed, and of nobody else."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from quecc_jax.generate.questions import Question
from quecc_jax.serve.own_backend import own_backend
from quecc_jax.serve.web.bounds import Room
from quecc_jax.serve.web.fetch import Fetcher, _is_public
from quecc_jax.serve.web.refusals import Refused
from tests.commands.talker import QUESTIONS
from tests.serve.serving import LIMITS, MODEL, SMALL, eventually, front_of, png, post, said, served

BOUNDS = SMALL._replace(fetch_seconds=2.0)


@contextlib.contextmanager
def site(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[int, list[str]]]:
    """The port of a host of images, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.headers['Host']}{self.path}")
            with contextlib.suppress(OSError):
                answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()


def gives(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def get(url: str, *hosts: str, private: bool = True, room: int = 10**9) -> bytes:
    async def fetch() -> bytes:
        with Room(room).holding() as held:
            return await Fetcher(BOUNDS, hosts, private)(url, held, "here")

    return asyncio.run(fetch())


def test_an_image_of_an_allowed_host_is_asked_about(engine, images):
    with site(gives(images[2].read_bytes())) as (web, asked):
        fetcher = Fetcher(BOUNDS, [f"localhost:{web}"], private=True)
        with served(front_of(own_backend(engine), BOUNDS, fetcher=fetcher)) as port:
            wish = {"model": MODEL, "messages": said(QUESTIONS[0], f"http://localhost:{web}/a/b.png?c=d")}
            status, reply, _ = post(port, wish)
        (wanted,) = engine.answers([Question(QUESTIONS[0], (images[2],))], LIMITS)
        assert status == 200 and reply["choices"][0]["message"]["content"] == wanted
        assert asked == [f"localhost:{web}/a/b.png?c=d"]


def test_only_the_host_itself_at_its_port_is_allowed():
    with site(gives(b"x")) as (web, asked):
        own = f"localhost:{web}"
        assert get(f"http://{own}/", own) == get(f"HTTP://LOCALHOST:{web}", own) == b"x"
        count = len(asked)
        for url in (
            f"http://127.0.0.1:{web}/",
            f"http://localhost.:{web}/",
            f"http://a.localhost:{web}/",
            f"http://{own}@127.0.0.1:{web}/",
            f"http://user:word@{own}/",
            f"http://evil.example\\@{own}/",
            f"https://localhost:{web + 1}/",
            "http://localhost/",
            "http:///x",
            "http://",
            f"http://[::1]:{web}/",
            f"//{own}/",
            f"gopher://{own}/",
            f"http://{own}:99999/",
            f"http://{own}/\r\nX: y",
            f"http://{own}/\u00e9",
            "http://[",
            "",
        ):
            with pytest.raises(Refused) as caught:
                get(url, own)
            assert caught.value.status == 400 and "\n" not in str(caught.value), url
        assert len(asked) == count
        with pytest.raises(Refused, match="gets no images from there"):
            get(f"http://{own}/", "localhost")


def test_private_addresses_are_not_called_unless_that_is_allowed(monkeypatch):
    with site(gives(b"x")) as (web, asked):
        own = f"localhost:{web}"
        with pytest.raises(Refused, match="the image cannot be had; send it as a data URI"):
            get(f"http://{own}/", own, private=False)
        assert asked == []
        # One private address among public ones is enough.
        found = [(socket.AF_INET, 1, 6, "", (number, web)) for number in ("8.8.8.8", "127.0.0.1")]

        async def resolved(*_: Any, **__: Any) -> Any:
            return found

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolved)
        with pytest.raises(Refused, match="cannot be had"):
            get(f"http://{own}/", own, private=False)
        assert asked == []


@pytest.mark.parametrize(
    ("number", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
    ],
)
def test_public_addresses(number, public):
    assert _is_public(number) == public


@pytest.mark.parametrize("status", [301, 302, 307, 308, 404, 500, 204])
def test_redirections_and_errors_are_not_followed(status):
    with site(gives(b"", status, Location="http://169.254.169.254/secret")) as (web, asked):
        with pytest.raises(Refused, match=f"the image's server answers {status}") as caught:
            get(f"http://localhost:{web}/", f"localhost:{web}")
        assert "169.254" not in str(caught.value) and len(asked) == 1


def test_large_and_slow_files_end():
    large = png(4, 4) + bytes(300_000)

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(200):
            request.wfile.write(b"a")
            time.sleep(0.05)

    def silent(request: BaseHTTPRequestHandler) -> None:
        time.sleep(10)

    for answer, status, message in (
        (gives(large), 413, "more than 200,000 bytes"),
        (gives(large, Content_Length="300000"), 413, "more than 200,000 bytes"),
        (gives(b"x", Content_Length="5"), 400, "cannot be had"),
        (gives(b"x", Transfer_Encoding="chunked"), 400, "cannot be had"),
        (drip, 400, "takes longer than 2 s"),
        (silent, 400, "takes longer than 2 s"),
    ):
        with site(answer) as (web, _):
            began = time.monotonic()
            with pytest.raises(Refused, match=message) as caught:
                get(f"http://localhost:{web}/", f"localhost:{web}")
            assert caught.value.status == status and time.monotonic() - began < 8
    with site(gives(bytes(1000))) as (web, _):
        with pytest.raises(Refused, match="bytes of other requests fill the server") as caught:
            get(f"http://localhost:{web}/", f"localhost:{web}", room=500)
        assert caught.value.status == 503


def test_what_is_no_http_is_no_image():
    def garbage(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"\x00\xffgarbage\r\n\r\n" * 3)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=garbage, args=(listener,))
        thread.start()
        with pytest.raises(Refused, match="cannot be had"):
            get(f"http://localhost:{port}/", f"localhost:{port}")
        thread.join()
    with pytest.raises(Refused, match="cannot be had"):
        get(f"http://localhost:{port}/", f"localhost:{port}")
    with pytest.raises(Refused, match="cannot be had"):
        get("https://nowhere.invalid/", "nowhere.invalid")


def test_a_client_that_leaves_ends_its_download(engine):
    gone = threading.Event()

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        try:
            for _ in range(600):
                request.wfile.write(b"a")
                time.sleep(0.02)
        except OSError:
            gone.set()

    bounds = BOUNDS._replace(fetch_seconds=60.0)
    with site(endless) as (web, asked):
        fetcher = Fetcher(bounds, [f"localhost:{web}"], private=True)
        with served(front_of(own_backend(engine), bounds, fetcher=fetcher)) as port:
            import json

            body = json.dumps({"model": MODEL, "messages": said("x", f"http://localhost:{web}/")}).encode()
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(head.encode() + body)
                eventually(lambda: asked)
            assert gone.wait(10)
