"""A server of a tiny model in a thread of this process, and what its tests ask it with."""

import base64
import contextlib
import http.client
import io
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
from PIL import Image

from quecc_jax.config import RunConfig
from quecc_jax.generate.questions import Limits, Usage
from quecc_jax.serve.app import Front, application
from quecc_jax.serve.backend import Asked, Backend
from quecc_jax.serve.chat_page import Page
from quecc_jax.serve.web.bounds import Bounds
from quecc_jax.serve.web.guards import Access
from quecc_jax.serve.web.server import BoundedServer, listen, run

LIMITS = Limits(6)
MODEL = "tiny"
SMALL = Bounds(image_bytes=200_000, pixels=1_000_000, held_pixels=2_000_000)


def front_of(backend: Backend, bounds: Bounds = SMALL, limits: Limits = LIMITS, **more: Any) -> Front:
    """A front whose backend is there."""
    front = Front(MODEL, limits, bounds, more.pop("access", Access(("127.0.0.1",))), **more)
    front.ready(backend)
    return front


@contextlib.contextmanager
def served(
    front: Front, page: Page | None = None, load: Callable[[], None] = lambda: None, grace: float = 0.0
) -> Iterator[int]:
    """The port that it is served at."""
    listener = listen("127.0.0.1", 0)
    app = application(front, page.routes() if page is not None else ())
    server = BoundedServer(app, front.bounds, load, lambda: front.answers.stop(grace))
    thread = threading.Thread(target=run, args=(server, listener))
    port = listener.getsockname()[1]
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def client(port: int, key: str = "none", **settings: Any) -> openai.OpenAI:
    """The official client, which does not try again by itself."""
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=60, **settings
    )


def call(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, Any]:
    """Status, body and headers of a reply."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request(method, path, body or None, given)
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers


def post(port: int, value: object, **headers: str) -> tuple[int, Any, Any]:
    """A chat request: status, JSON (or bytes where it is none) and headers."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    headers = {"Content_Type": "application/json", **headers}
    status, reply, found = call(port, "POST", "/v1/chat/completions", body, **headers)
    with contextlib.suppress(ValueError):
        reply = json.loads(reply)
    return status, reply, found


def said(text: str, *images: bytes | str | Path) -> list[Any]:
    """The messages of one question."""
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def data_uri(image: bytes | str | Path) -> str:
    """A data URI of a file; a text is one already, or another address."""
    if isinstance(image, str):
        return image
    file = image.read_bytes() if isinstance(image, Path) else image
    return "data:image/png;base64," + base64.b64encode(file).decode()


def png(width: int, height: int) -> bytes:
    """A black image."""
    out = io.BytesIO()
    Image.new("L", (width, height)).save(out, "PNG")
    return out.getvalue()


def eventually(holds: Callable[[], object], seconds: float = 30) -> None:
    """Waits until something holds."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it never held"
        time.sleep(0.02)


class Slow:
    """A backend that says a word at a time, as slowly as it is told, and counts what it is asked."""

    def __init__(self, config: RunConfig, pause: float = 0.05, words: int = 10_000, word: str = "word "):
        self.config, self.pause, self.words, self.word = config, pause, words, word
        self.begun = self.closed = self.ended = self.said = 0

    async def answer(self, asked: Asked) -> AsyncGenerator[str | Usage]:
        import asyncio

        self.begun += 1
        try:
            for _ in range(self.words):
                await asyncio.sleep(self.pause)
                self.said += 1
                yield self.word
            self.ended += 1
            yield Usage(3, 0, 0, self.words, 0.1, 0.2, "length")
        finally:
            self.closed += 1

    async def attention(self, asked: Asked) -> np.ndarray | None:
        return None
