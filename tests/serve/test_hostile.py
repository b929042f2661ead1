"""Clients that mean harm: each of them is bounded, and others are answered meanwhile."""

import concurrent.futures
import contextlib
import errno
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from PIL import Image

from quecc_jax.generate import reading
from quecc_jax.serve import images as serve_images
from quecc_jax.serve.own_backend import own_backend
from tests.commands.talker import QUESTIONS
from tests.serve.serving import (
    MODEL,
    SMALL,
    Slow,
    call,
    client,
    data_uri,
    eventually,
    front_of,
    png,
    post,
    said,
    served,
)

ASK: dict[str, Any] = {"model": MODEL, "messages": said("what?")}
FAST = SMALL._replace(
    head_seconds=1.0,
    body_seconds=1.0,
    lag_seconds=1.0,
    linger_seconds=1.0,
    connections=40,
    held_bytes=3_000_000,
)


@contextlib.contextmanager
def connected(port: int, sent: bytes = b"", room: int = 0) -> Iterator[socket.socket]:
    """A raw connection; with `room`, one that holds so few bytes that nobody reads."""
    with socket.socket() as connection:
        if room:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        connection.sendall(sent)
        yield connection


def heard(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def head(port: int, length: object = 5, more: str = "", path: str = "/v1/chat/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode("latin-1")


def asked(port: int, **more: object) -> bytes:
    body = json.dumps(ASK | more).encode()
    return head(port, len(body)) + body


def memory() -> int:
    return psutil.Process().memory_info().rss


def still_answers(port: int) -> None:
    assert post(port, ASK)[0] == 200


def test_idle_connections_take_no_threads_and_are_cut(engine):
    with served(front_of(own_backend(engine), FAST)) as port, contextlib.ExitStack() as stack:
        still_answers(port)
        threads = threading.active_count()
        held = [stack.enter_context(connected(port)) for _ in range(40)]
        late = stack.enter_context(connected(port, asked(port)))
        said_late = heard(late)
        assert said_late.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in said_late
        assert b"too many connections" in said_late
        assert threading.active_count() <= threads
        for connection in held:
            assert heard(connection) == b""
        still_answers(port)


def test_far_too_many_connections_are_cut_at_once(engine):
    bounds = FAST._replace(connections=5)
    with served(front_of(own_backend(engine), bounds)) as port:
        with contextlib.ExitStack() as stack:
            began = psutil.Process().num_fds()
            held = [stack.enter_context(connected(port)) for _ in range(100)]
            # Ours are 100; the server's at most twice those that it serves.
            eventually(lambda: psutil.Process().num_fds() <= began + 100 + 10)
            for connection in held:
                heard(connection)
        eventually(lambda: post(port, ASK)[0] == 200)


@pytest.mark.parametrize("sent", [b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nX: "])
def test_a_head_that_drips_in_is_cut(engine, sent):
    with served(front_of(own_backend(engine), FAST)) as port, connected(port, sent) as connection:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"a")
                time.sleep(0.1)
        assert time.monotonic() - began < 5
        still_answers(port)


def test_a_second_head_on_a_connection_that_drips_in_is_cut(engine):
    first = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with served(front_of(own_backend(engine), FAST)) as port, connected(port, first) as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"G")
                time.sleep(0.1)
        assert time.monotonic() - began < 5


def test_a_body_that_drips_in_is_refused(engine):
    with served(front_of(own_backend(engine), FAST)) as port, connected(port, head(port, 1000)) as connection:
        with contextlib.suppress(OSError):
            for _ in range(14):
                connection.sendall(b" ")
                time.sleep(0.1)
        reply = heard(connection)
        assert reply.startswith(b"HTTP/1.1 408 ") and b"took longer than 1 s" in reply
        still_answers(port)


def test_a_refused_body_that_never_ends_is_cut(engine):
    with served(front_of(own_backend(engine), FAST)) as port:
        with connected(port, head(port, 10**12)) as connection:
            began = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() < began + 20:
                    connection.sendall(bytes(1 << 16))
            assert time.monotonic() - began < 10
        still_answers(port)


def test_a_client_that_is_gone_when_it_is_refused_is_no_defect(engine, monkeypatch, capfd):
    """The system says so when the server ends its side of the connection."""

    def gone(self: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with served(front_of(Slow(engine.config, pause=0, words=2), FAST)) as port:
        with monkeypatch.context() as patched:
            patched.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", gone)
            for sent in (b"\0\r\n\r\n", head(port, 10**9), head(port, 10**9, "Connection: close\r\n")):
                with connected(port, sent) as connection:
                    heard(connection)
        still_answers(port)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("close", [False, True])
def test_who_sends_all_before_reading_hears_why(engine, close):
    more = "Connection: close\r\n" if close else ""
    with served(front_of(own_backend(engine), SMALL._replace(request_bytes=1000))) as port:
        with connected(port, head(port, 20_000_000, more)) as connection:
            connection.sendall(bytes(20_000_000))
            reply = heard(connection)
        assert reply.startswith(b"HTTP/1.1 413 ") and b"20,000,000 bytes are more than the 1,000" in reply


def test_bytes_of_all_requests_at_a_time_are_bounded(engine):
    """Six clients that send 1 MB of 2 MB each and wait: three are held, the others are refused, and memory stays."""
    bounds = FAST._replace(body_seconds=2.0, request_bytes=2_000_000)
    with served(front_of(own_backend(engine), bounds)) as port, contextlib.ExitStack() as stack:
        still_answers(port)
        senders = [stack.enter_context(connected(port, head(port, 2_000_000))) for _ in range(6)]
        for sender in senders:
            with contextlib.suppress(OSError):
                sender.sendall(b" " * 1_000_000)
        replies = [heard(sender) for sender in senders]
        statuses = sorted(reply[9:12] for reply in replies)
        assert statuses.count(b"503") >= 3 and set(statuses) == {b"408", b"503"}, statuses
        refused = next(reply for reply in replies if reply[9:12] == b"503")
        assert b"bytes of other requests fill the server" in refused and b"etry-" in refused
        still_answers(port)


def test_many_large_images_are_decoded_in_bounded_memory(engine):
    """Twelve small files of 12 million pixels each."""
    out = io.BytesIO()
    Image.new("RGB", (4000, 3000), "red").save(out, "PNG")
    file = out.getvalue()
    assert len(file) < 200_000
    bounds = SMALL._replace(pixels=12_000_000, held_pixels=12_000_000)
    with served(front_of(own_backend(engine, waiting=20), bounds)) as port:
        still_answers(port)
        before, highest, done = memory(), [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.01):
                highest[0] = max(highest[0], memory())

        watching = threading.Thread(target=watch)
        watching.start()
        wish = {"model": MODEL, "messages": said(QUESTIONS[0], file)}
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            statuses = [*pool.map(lambda _: post(port, wish)[0], range(12))]
        done.set()
        watching.join()
        assert statuses == [200] * 12
        # One at a time takes some 100 MB; twelve would take more than 1 GB.
        assert highest[0] - before < 400_000_000, highest[0] - before


@pytest.mark.parametrize("module, name", [(serve_images, "image_size"), (reading, "load_pixels")])
def test_an_image_that_takes_long_to_read_keeps_nobody(engine, images, monkeypatch, module, name):
    """Neither its header nor its pixels are read where requests are served."""
    real, going, begun = getattr(module, name), threading.Event(), threading.Event()

    def held(*arguments: Any, **settings: Any) -> Any:
        begun.set()
        assert going.wait(30)
        return real(*arguments, **settings)

    monkeypatch.setattr(module, name, held)
    with (
        served(front_of(own_backend(engine), FAST)) as port,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        try:
            asking = pool.submit(post, port, ASK | {"messages": said(QUESTIONS[0], images[0])})
            assert begun.wait(30)
            still_answers(port)
        finally:
            going.set()
        assert asking.result()[0] == 200


def test_a_reader_that_never_reads_is_cut_and_keeps_nobody(engine):
    """Its answer is larger than the sockets hold."""
    slow = Slow(engine.config, pause=0.0, words=4000, word="word " * 1000)
    with served(front_of(slow, FAST)) as port:
        with connected(port, asked(port, stream=True), room=4096) as connection:
            # The whole answer is made: a reader keeps no slot of the model.
            eventually(lambda: slow.ended == 1)
            other = call(port, "GET", "/healthz")
            assert other[0] == 200
            time.sleep(2)
            assert len(heard(connection)) < 4000 * 5000
        eventually(lambda: slow.closed == slow.begun)


def test_a_client_that_leaves_ends_its_answer(engine):
    slow = Slow(engine.config)
    with served(front_of(slow, FAST)) as port:
        for stream in (True, False):
            with connected(port, asked(port, stream=stream)) as connection:
                if stream:
                    assert connection.recv(100).startswith(b"HTTP/1.1 200")
                eventually(lambda: slow.begun > slow.closed)
            eventually(lambda: slow.begun == slow.closed)
        with client(port).chat.completions.create(**ASK, stream=True) as stream:
            for number, _ in enumerate(stream):
                if number == 3:
                    break
        eventually(lambda: slow.begun == slow.closed)
        assert slow.begun == 3 and slow.ended == 0


def test_a_client_that_leaves_before_the_first_piece_ends_its_answer(engine):
    slow = Slow(engine.config, pause=60)
    with served(front_of(slow, FAST)) as port:
        for stream in (True, False):
            with connected(port, asked(port, stream=stream)):
                eventually(lambda: slow.begun > slow.closed)
            eventually(lambda: slow.begun == slow.closed)


def test_an_answer_that_takes_too_long_ends_with_an_error(engine):
    slow = Slow(engine.config)
    with served(front_of(slow, FAST._replace(answer_seconds=0.5))) as port:
        status, reply, headers = post(port, ASK)
        assert (
            status == 503 and "took more than 0.5 s" in reply["error"]["message"] and headers["Retry-After"]
        )
        status, reply, _ = post(port, ASK | {"stream": True})
        *_, last, end = reply.decode().split("\n\n")
        assert (
            status == 200
            and json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
            and end == ""
        )
        eventually(lambda: slow.begun == slow.closed == 2)


def test_a_defect_of_the_backend_is_an_error_without_its_words(engine, capfd):
    class Broken(Slow):
        async def answer(self, asked):
            yield "a"
            raise ValueError("secret")

    with served(front_of(Broken(engine.config), FAST)) as port:
        status, reply, _ = post(port, ASK)
        assert (status, reply["error"]["type"]) == (500, "server_error") and "secret" not in str(reply)
        status, reply, _ = post(port, ASK | {"stream": True})
        assert b'"code":"internal_error"' in reply and b"secret" not in reply and b"[DONE]" not in reply
    assert "ValueError: secret" in capfd.readouterr().err


MALFORMED = [
    (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
    (b"GET\r\n\r\n", b"400"),
    (b"GET / HTTP/9.9\r\n\r\n", b"403"),
    (b"GET / HTTP/1.1\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nNo colon\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", b"400"),
    (b"GET / HTTP/1.1\r\nHost: [\r\n\r\n", b"403"),
    (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", b"403"),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\xff\r\n\r\n", b"403"),
    (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", b"403"),
    (b"GET / HTTP/1.0\r\n\r\n", b"403"),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://[\r\n\r\n", b"403"),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: null\r\n\r\n", b"403"),
    (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example\r\n\r\n", b"403"),
    (b"GET / HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n", b"403"),
    (b"GET //evil.example/%2e%2e HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
    (b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
    (b"BREW / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
    (b"BREW /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"405"),
    (
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"200",
    ),
    (head(0, "-1"), b"400"),
    (head(0, "+5"), b"400"),
    (head(0, "five"), b"400"),
    (head(0, "5\r\nContent-Length: 6"), b"400"),
    (head(0, "\u00b2"), b"400"),
    (head(0, "9" * 30), b"400"),
    (head(0, "1" + "0" * 17), b"413"),
    (head(0).replace(b"Content-Length: 5\r\n", b""), b"411"),
    (head(0).replace(b"Content-Length: 5", b"Transfer-Encoding: chunked"), b"411"),
    (head(0, 5, "Transfer-Encoding: chunked\r\n"), b"411"),
    (head(0).replace(b"Content-Length: 5", b"Transfer-Encoding: gzip"), b"400"),
]


@pytest.fixture(scope="module")
def same(engine):
    with served(front_of(own_backend(engine), FAST)) as found:
        yield found


@pytest.mark.parametrize(("sent", "status"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_requests_are_one_error(same, sent, status, capfd):
    with connected(same, sent.replace(b"127.0.0.1:0\r\n", b"127.0.0.1\r\n")) as connection:
        reply = heard(connection)
    assert reply[:9] == b"HTTP/1.1 " and reply[9:12] == status, reply[:300]
    if status != b"200":
        assert b'\r\n\r\n{"error":{"message":' in reply, reply
    assert reply.count(b"HTTP/1.1 ") == 1
    assert "Traceback" not in capfd.readouterr().err


def test_requests_that_follow_on_one_connection_are_all_answered(same):
    one = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connected(same, one * 5) as connection:
        reply = heard(connection)
    assert reply.count(b"HTTP/1.1 200") == 5


def test_a_flood_of_mixed_harm_loses_no_honest_answer(engine):
    """Honest answers are those of a quiet server; threads, memory and open files do not grow."""
    bounds = FAST._replace(connections=200)
    with served(front_of(own_backend(engine, waiting=100), bounds)) as port:
        quiet = post(port, ASK)[1]["choices"][0]["message"]["content"]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            # All threads that read images.
            assert {
                *pool.map(lambda _: post(port, ASK | {"messages": said("x", png(4, 4))})[0], range(8))
            } == {200}
        settled, before = threading.active_count(), psutil.Process().num_fds()
        first_memory = memory()
        stop = threading.Event()

        def harm(number: int) -> None:
            kinds = [
                b"", b"G", head(port, 100), head(port, 10**9), asked(port)[:-3], asked(port, stream=True),
                os.urandom(500), head(port, 9) + b"[" * 9, asked(port, temperature=99),
                asked(port, messages=said("x", data_uri(os.urandom(3000)))),
            ]  # fmt: skip
            turn = number
            while not stop.is_set():
                turn += 1
                with contextlib.suppress(OSError), connected(port, kinds[turn % len(kinds)]) as connection:
                    if turn % 3:
                        connection.settimeout(0.2)
                        connection.recv(100)

        harming = [threading.Thread(target=harm, args=(number,)) for number in range(8)]
        for thread in harming:
            thread.start()
        try:
            for _ in range(20):
                status, reply, _ = post(port, ASK)
                assert status == 200 and reply["choices"][0]["message"]["content"] == quiet
        finally:
            stop.set()
            for thread in harming:
                thread.join()
        eventually(lambda: threading.active_count() <= settled)
        eventually(lambda: psutil.Process().num_fds() <= before + 2)
        assert memory() - first_memory < 150_000_000
        text = call(port, "GET", "/metrics")[1].decode()
        assert "quecc_requests_under_way 1.0" in text and "quecc_waiting 0.0" in text, text
