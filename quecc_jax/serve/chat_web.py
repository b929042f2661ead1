"""The chat as one page of a small server: standard library only, no other host is asked for anything.

Images stay in memory, the newest few of them; nothing is written to disk. The conversation lives in the
page, which sends it along with every question, so pages share nothing. The server answers requests that
name this machine (or the host it was told to listen at) and come from its own page: a page of another site
can neither read it by DNS rebinding nor post to it.
"""

import base64
import collections
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Generator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
import numpy as np

from quecc_jax.data.images import image_size, padding
from quecc_jax.errors import BadRow, UserError
from quecc_jax.evaluate.attention import own_squares
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Query, Question, ReadImage
from quecc_jax.generate.sampling import Sampling, unless_greedy
from quecc_jax.pages.page import render
from quecc_jax.records import Damaged, Finite, json_value, of_form

Json = Mapping[str, object]
UPLOADS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
KEPT = 32
"""Images that the server remembers."""
MAX_JSON = 256_000
"""Bytes of a question with its conversation."""
WAITING = 8
"""Questions that may wait for the model at the same time."""
LINGER = 30.0
"""Seconds that a request which was refused may go on being sent."""
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


def policy(page: str) -> str:
    """The page's Content-Security-Policy: its own script, by hash, and its own server are all it has."""
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    )


class Refused(Exception):
    """A request that is not served: HTTP status and a sentence."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Page:
    """What the page can ask for, apart from HTTP."""

    def __init__(
        self,
        engine: Engine,
        limits: Limits,
        query: Query,
        max_bytes: int,
        max_pixels: int,
        image: bytes = b"",
        questions: Sequence[str] = (),
    ):
        """A page that begins with an image file, or none, and offers questions to click.

        Raises:
          UserError: the image is not accepted.
        """
        self.engine, self.limits, self.query = engine, limits, query
        self.max_bytes, self.max_pixels = max_bytes, max_pixels
        self.image, self.questions = image, tuple(questions)
        self._images: collections.OrderedDict[str, ReadImage] = collections.OrderedDict()
        self._model, self._held = threading.Lock(), threading.Lock()
        self._room = threading.Semaphore(WAITING)
        if image:
            try:
                self.upload(image)
            except Refused as refused:
                raise UserError(f"the image to begin with: {refused}") from None

    def settings(self) -> Json:
        """What the page shows before the first question."""
        data, model = self.engine.config.data, self.engine.config.model
        vision, how = model.vision, model.vision.pixels
        stretched = bool(vision.tiles) or (data.image_aspect == "square" and how.fit == "stretch")
        return {
            "query": self.query,
            "max_new_tokens": self.limits.max_new_tokens,
            "visual_tokens": model.visual_tokens if data.images_per_row else 0,
            "images": data.images_per_row,
            "max_bytes": self.max_bytes,
            "max_pixels": self.max_pixels,
            "compressor": model.compressor.name,
            "max_length": data.max_length,
            "fit": "squeeze" if stretched else data.image_aspect,
            "padding": padding(how),
            # Of the square that is resized, the middle is cut out, and of that the border left out.
            "cut": (how.resized or vision.image_size) / vision.image_size,
            "seen": vision.image_size / (vision.grid * vision.patch_size),
            "has_image": bool(self.image),
            "questions": self.questions,
        }

    def upload(self, body: bytes) -> Json:
        """Takes an image file.

        Returns:
          Its id for questions.

        Raises:
          Refused: it is no image of the accepted kinds, or has too many pixels.
          UserError: as `open_image`.
        """
        try:
            width, height = image_size(BytesIO(body), formats=UPLOADS)
        except BadRow as error:
            if error.fault == "picture size":
                raise
            raise Refused(415, f"this is no image of the kinds {', '.join(UPLOADS)}; convert it") from None
        if width * height > self.max_pixels:
            raise Refused(
                413,
                f"the image has {width} x {height} pixels, more than {self.max_pixels:,}; make it smaller",
            )
        image = self.engine.image(BytesIO(body))
        name = image.key.hex()
        with self._held:
            self._images[name] = image
            self._images.move_to_end(name)
            while len(self._images) > KEPT:
                self._images.popitem(last=False)
        return {"id": name, "width": width, "height": height}

    def ask(self, body: bytes) -> Generator[Json]:
        """Events of one answer: {"text": piece} as they come, then {"usage", "told", "answer", "query",
        "attention", "squares"}, the attention for the words that the compressor read.

        Raises:
          Refused: the request is malformed, names an unknown image, or too many wait.
          UserError: the question does not fit.
        """
        asked = _asked(body)
        with self._held:
            if not self._images.keys() >= {*asked.images}:
                raise Refused(410, "the server no longer has this image; choose it again")
            images = tuple(self._images[name] for name in asked.images)
        question = Question(asked.text, images, tuple(asked.history), asked.query or self.query)
        limits = self.limits
        if asked.temperature is not None:
            sampling = (limits.sampling or Sampling())._replace(temperature=asked.temperature)
            limits = limits._replace(sampling=unless_greedy(sampling))
        if asked.seed is not None:
            limits = limits._replace(seed=asked.seed)
        if not self._room.acquire(blocking=False):
            raise Refused(503, f"{WAITING} questions are waiting already; try again soon")
        try:
            with self._model:
                run = self.engine.run([question], limits)
                for _, piece in run:
                    yield {"text": piece}
                yield {
                    "usage": run.usage[0]._asdict(),
                    "told": run.usage[0].told(),
                    "answer": run.texts()[0],
                    "query": question.asked(),
                    **self._looked(question),
                }
        finally:
            self._room.release()

    def _looked(self, question: Question) -> Json:
        """`attention` [I, V, N], the mean over heads of every visual token's, and how many `squares` along a
        side of the image belong to one token each, see `own_squares`; both None without."""
        weights = self.engine.attention(question) if question.images else None
        if weights is None:
            return {"attention": None, "squares": None}
        mean = weights.mean(axis=2)
        return {
            "attention": np.round(mean.reshape(*mean.shape[:2], -1), 5).tolist(),
            "squares": own_squares(weights[0]),
        }


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question as the page sends it; None is the server's own setting."""

    text: str = ""
    history: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    query: Query | None = None
    temperature: Finite | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | None = None


def _asked(body: bytes) -> _Asked:
    """Raises Refused unless each field has the type that it must have."""
    name = "the question"
    try:
        asked = of_form(json_value(body, name, "ask again"), _Asked, name, "ask again")
        "".join((asked.text, *asked.history)).encode()
    except (Damaged, UnicodeEncodeError):
        raise Refused(400, "the question is not of the form that the page sends") from None
    return asked


def make_server(page: Page, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is bound but not yet serving.

    Raises:
      UserError: the address cannot be listened at.
    """

    class Handler(_Handler):
        pass

    Handler.page = page
    Handler.document = render("serve/chat_page.html", title="Chat", lead="")
    Handler.names = {"localhost", "127.0.0.1", "[::1]", host if ":" not in host else f"[{host}]"}

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--host {host} --port {port} cannot be listened at ({reason}); choose another"
        ) from None


def serve(page: Page, host: str, port: int, show: bool = False) -> None:
    """Serves until interrupted; with `show` in the user's browser, where there is one."""
    with make_server(page, host, port) as server:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{server.server_address[1]}/"
        print(f"{address}  (Ctrl-C ends)", flush=True)
        if show:
            webbrowser.open(address)
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    page: Page
    document: str
    names: set[str]
    timeout = 60
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "quecc", ""

    def do_GET(self) -> None:
        def reply() -> None:
            if self.path == "/":
                own_script = {"Content-Security-Policy": policy(self.document)}
                self._send(200, "text/html; charset=utf-8", self.document.encode(), own_script)
            elif self.path == "/settings":
                self._json(200, self.page.settings())
            elif self.path == "/image" and self.page.image:
                self._send(200, "application/octet-stream", self.page.image)
            else:
                raise Refused(404, "there is nothing here")

        self._guarded(reply)

    def do_POST(self) -> None:
        def reply() -> None:
            if self.path == "/image":
                self._json(200, self.page.upload(self._body(self.page.max_bytes)))
            elif self.path == "/ask":
                self._stream(self.page.ask(self._body(MAX_JSON)))
            else:
                raise Refused(404, "there is nothing here")

        self._guarded(reply)

    def _guarded(self, reply: Callable[[], None]) -> None:
        try:
            self._check_sender()
            reply()
        except Refused as refused:
            self._json(refused.status, {"error": str(refused)})
        except UserError as error:
            self._json(422, {"error": str(error)})
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _check_sender(self) -> None:
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        try:
            named, asking = urlsplit(f"//{host}").netloc, host if origin is None else urlsplit(origin).netloc
        except ValueError:
            raise Refused(403, "the request names no host") from None
        if named.rsplit(":", 1)[0] not in self.names and host not in self.names:
            raise Refused(
                403, f"this page has no name {host[:80]}; start it with --host and that name or address"
            )
        if asking != host:
            raise Refused(403, "the request comes from another page")

    def _body(self, limit: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,18}", length):
            raise Refused(411, "the request does not say its length")
        if int(length) > limit:
            raise Refused(
                413,
                f"{int(length):,} bytes are more than the {limit:,} that are accepted; make the file smaller",
            )
        return self.rfile.read(int(length))

    def _json(self, status: int, value: Json) -> None:
        if status >= 400:
            # The body may not have been read.
            self.close_connection = True
        self._send(status, "application/json", json.dumps(value).encode())
        if status >= 400 and self.command == "POST":
            self._linger()

    def _linger(self) -> None:
        """Reads on until the sender is done: browsers send all before they read a reply, and a connection that is
        closed with bytes unread breaks and takes the reply with it."""
        until = time.monotonic() + LINGER
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(5)
            while time.monotonic() < until and self.rfile.read1(1 << 16):
                pass

    def _send(self, status: int, kind: str, body: bytes, more: dict[str, str] | None = None) -> None:
        self._head(status, kind, {"Content-Length": str(len(body)), **(more or {})})
        self.wfile.write(body)

    def _head(self, status: int, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        if self.close_connection:
            more["Connection"] = "close"
        for name, value in {"Content-Type": kind, **HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def _stream(self, events: Generator[Json]) -> None:
        """Server-sent events; a mistake before the first one is an ordinary error."""
        first = next(events, None)
        self.close_connection = True
        self._head(200, "text/event-stream", {})
        try:
            if first is not None:
                self._event(first)
            for event in events:
                self._event(event)
        except UserError as error:
            self._event({"error": str(error)})
        finally:
            # A page that left must not keep the model.
            events.close()

    def _event(self, event: Json) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: they hold what people ask."""
