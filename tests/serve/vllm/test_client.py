"""The client of vLLM before a stand-in that says what a real one seldom does; `make test-vllm` has the real one."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.errors import UserError
from quecc_jax.generate.questions import Limits
from quecc_jax.generate.sampling import Sampling
from quecc_jax.serve.backend import Away, Busy
from quecc_jax.serve.vllm.client import Vllm, sampling_settings

Reply = tuple[int, dict[str, str], list[bytes]]
"""Status, headers and pieces of a body."""


@contextlib.contextmanager
def stand_in(reply: Reply, pause: float = 0.0) -> Iterator[tuple[str, list[bytes]]]:
    """A server's address, and what it was sent; it gives every request this reply, with pauses between its pieces."""
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.do_GET()

        def do_GET(self) -> None:
            status, headers, pieces = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(pause)
                received.append(b"whole")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def event(choice: str) -> bytes:
    return b'data: {"id": "x", "choices": [' + choice.encode() + b"]}\n\n"


DONE = b"data: [DONE]\n\n"
FIRST, LAST = event('{"token_ids": [5, 6]}'), event('{"token_ids": [7], "finish_reason": "length"}')


async def everything(url: str, patience: float = 20.0) -> list[list[int]]:
    vllm = Vllm(url, patience=patience)
    try:
        return [ids async for ids in vllm.tokens(b"{}")]
    finally:
        await vllm.close()


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_tokens_come_whole_however_the_stream_is_cut(cut):
    body = b": a comment\n\n" + FIRST + event("") + LAST + DONE
    pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
    with stand_in((200, {}, pieces)) as (url, _):
        assert asyncio.run(everything(url + "/v1/")) == [[5, 6], [7]]


TOLD = b'{"error": {"message": "the prompt is odd\\nand more", "code": 400}}'
FAULTS: dict[str, tuple[Reply, type[Exception], str]] = {
    "a question at fault": ((400, {}, [TOLD]), UserError, r"refuses the question \(the prompt is odd\)"),
    "an old form of errors": ((422, {}, [b'{"message": "no"}']), UserError, r"refuses the question \(no\)"),
    "too large": ((413, {}, [b"nginx says no"]), UserError, "refuses the question; ask less"),
    "another key": ((401, {}, [b'{"error": "Unauthorized"}']), Away, "status 401; look at its log"),
    "no such model": ((404, {}, [TOLD]), Away, r"status 404 \(the prompt is odd\)"),
    "in trouble": ((500, {}, [b"\xff"]), Away, "status 500; look"),
    "redirected": ((302, {"Location": "http://127.0.0.1:9/"}, [b""]), Away, "status 302"),
    "another server": ((200, {}, [b"data: <html>\n\n"]), Away, "is it another server"),
    "no token ids": ((200, {}, [event('{"text": "a"}')]), Away, "returns no token ids"),
    "given up": ((200, {}, [FIRST, event('{"token_ids": [], "finish_reason": "abort"}')]), Away, "up .abort"),
    "an error on the way": ((200, {}, [FIRST, b"data: " + TOLD + b"\n\n", DONE]), Away, "the prompt is odd"),
    "broken off": ((200, {}, [FIRST]), Away, "broke off in the middle"),
    "broken off before it began": ((200, {}, [DONE]), Away, "broke off in the middle"),
    "shorter than it said": ((200, {"Content-Length": "999"}, [FIRST]), Away, "cannot be reached"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_goes_wrong_is_one_sentence(case):
    reply, kind, says = FAULTS[case]
    with stand_in(reply) as (url, _), pytest.raises(kind, match=says) as told:
        asyncio.run(everything(url))
    assert "\n" not in str(told.value) and url in str(told.value)


@pytest.mark.parametrize(
    "header, seconds", [({"Retry-After": "7"}, 7.0), ({}, 1.0), ({"Retry-After": "soon"}, 1.0)]
)
def test_a_full_server_says_when_to_come_again(header, seconds):
    for status in (429, 503):
        with stand_in((status, header, [b""])) as (url, _), pytest.raises(Busy) as told:
            asyncio.run(everything(url))
        assert told.value.seconds == seconds and not isinstance(told.value, Away)


def test_a_server_that_is_not_there_or_says_nothing():
    with stand_in((200, {}, [])) as (url, _):
        pass
    with pytest.raises(Away, match=r"cannot be reached .* start it, or give another --url"):
        asyncio.run(everything(url))
    with pytest.raises(Away, match="cannot be reached"):
        Vllm(url).models()
    with stand_in((200, {}, [FIRST, FIRST]), pause=2.0) as (url, _), pytest.raises(Away, match="ReadTimeout"):
        asyncio.run(everything(url, patience=0.2))
    with pytest.raises(UserError, match="begins with http"):
        Vllm("localhost:8000")


def test_whoever_leaves_closes_the_connection():
    async def leave(url: str) -> list[int]:
        vllm = Vllm(url)
        tokens = vllm.tokens(b'{"a": 1}')
        first = await anext(tokens)
        await tokens.aclose()
        await vllm.close()
        return first

    # More than the connection's buffers hold.
    with stand_in((200, {}, [FIRST, *[b"data: " + b" " * (1 << 20) + b"\n\n"] * 64, LAST, DONE])) as (
        url,
        received,
    ):
        assert asyncio.run(leave(url)) == [5, 6]
        time.sleep(0.2)
        assert received == [b'{"a": 1}']


@given(
    sampling=st.none()
    | st.builds(
        Sampling,
        st.just(0.0) | st.floats(0.01, 2.0),
        st.integers(0, 500),
        st.floats(0.0, 1.0, exclude_min=True),
        st.just(1.0),
    ),
    new=st.integers(1, 4096),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_every_setting_is_said(sampling, new, seed):
    """What is left out would come from the model's own generation_config.json."""
    said = sampling_settings(Limits(new, ("never",), sampling, seed), (2, 9))
    drawn = sampling is not None and sampling.temperature > 0
    assert said["temperature"] == (sampling.temperature if drawn else 0)
    assert (said["top_k"], said["top_p"]) == ((sampling.top_k, sampling.top_p) if drawn else (0, 1))
    assert (said["max_tokens"], said["seed"], said["stop_token_ids"]) == (new, seed, [2, 9])
    assert said["ignore_eos"] is True and said["repetition_penalty"] == 1 and "stop" not in said
    assert said.keys() >= {"min_p", "presence_penalty", "frequency_penalty", "min_tokens", "n"}


@pytest.mark.parametrize(
    "limits, why",
    [
        (Limits(sampling=Sampling(0.0, repetition_penalty=1.1)), "repetition_penalty is 1.1"),
        (Limits(sampling=Sampling(1.0, repetition_penalty=0.9)), "repetition_penalty is 0.9"),
        (Limits(sampling=Sampling(0.005)), "temperature is 0.005"),
        (Limits(sampling=Sampling(2.5)), "temperature is 2.5"),
        (Limits(seed=2**63), "seed is 9223372036854775808"),
    ],
)
def test_what_vllm_reads_otherwise_is_refused(limits, why):
    with pytest.raises(UserError, match=why):
        sampling_settings(limits, (2,))
