"""The chat as one page: no other host is asked for anything.

Images stay in memory, the newest few of them; nothing is written to disk. The conversation lives in the
page, which sends it along with every question, so pages share nothing.
"""

import base64
import collections
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from quecc_jax.data.images import padding
from quecc_jax.errors import UserError
from quecc_jax.evaluate.attention import own_squares
from quecc_jax.generate.questions import Limits, Query, Question, ReadImage, Usage
from quecc_jax.generate.reading import read_image
from quecc_jax.generate.sampling import Sampling, unless_greedy
from quecc_jax.pages.page import render
from quecc_jax.records import Damaged, Finite, json_value, of_form
from quecc_jax.serve.answers import Events, Pieces
from quecc_jax.serve.app import Front
from quecc_jax.serve.backend import Asked, Backend
from quecc_jax.serve.web.bodies import read_body
from quecc_jax.serve.web.clients import unless_gone
from quecc_jax.serve.web.refusals import Refused, refusal

Json = Mapping[str, object]
KEPT = 32
"""Images that the server remembers."""
MAX_JSON = 256_000
"""Bytes of a question with its conversation."""


def policy(page: str) -> str:
    """The page's Content-Security-Policy: its own script, by hash, and its own server are all it has."""
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src blob: data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'"
    )


class Page:
    """The page of a front, and what it asks for."""

    def __init__(self, front: Front, query: Query, image: bytes = b"", questions: Sequence[str] = ()):
        """A page that begins with an image file, or none, and offers questions to click.

        Raises:
          UserError: the image is not accepted.
        """
        self._front, self._query = front, query
        self._image, self._questions = image, tuple(questions)
        self._images: collections.OrderedDict[str, ReadImage] = collections.OrderedDict()
        self._document = render("serve/chat_page.html", title="Chat", lead="")
        if image:
            try:
                front.desk.images.size(image)
            except (Refused, UserError) as error:
                raise UserError(f"the image to begin with: {error}") from None

    def routes(self) -> list[Route]:
        """The page, and what its script calls."""
        return [
            Route("/", self._shown, methods=["GET"]),
            Route("/settings", self._settings, methods=["GET"]),
            Route("/image", self._first_image, methods=["GET"]),
            Route("/image", self._upload, methods=["POST"]),
            Route("/ask", self._ask, methods=["POST"]),
        ]

    def check(self, backend: Backend) -> None:
        """Raises UserError where the model does not take the image to begin with."""
        if self._image:
            if not backend.config.data.images_per_row:
                raise UserError("this model was trained on text alone and takes no image; leave --image out")
            read_image(self._image, backend.config)

    async def _shown(self, request: Request) -> Response:
        own_script = {"Content-Security-Policy": policy(self._document)}
        return Response(self._document, headers=own_script, media_type="text/html")

    async def _settings(self, request: Request) -> Response:
        """What the page shows before the first question."""
        front = self._front
        config = front.backend.config
        data, model = config.data, config.model
        vision, how = model.vision, model.vision.pixels
        stretched = bool(vision.tiles) or (data.image_aspect == "square" and how.fit == "stretch")
        settings = {
            "query": self._query,
            "max_new_tokens": front.desk.own.max_new_tokens,
            "visual_tokens": model.visual_tokens if data.images_per_row else 0,
            "images": data.images_per_row,
            "max_bytes": front.bounds.image_bytes,
            "max_pixels": front.bounds.pixels,
            "compressor": model.compressor.name,
            "max_length": data.max_length,
            "fit": "squeeze" if stretched else data.image_aspect,
            "padding": padding(how),
            # Of the square that is resized, the middle is cut out, and of that the border left out.
            "cut": (how.resized or vision.image_size) / vision.image_size,
            "seen": vision.image_size / (vision.grid * vision.patch_size),
            "has_image": bool(self._image),
            "questions": self._questions,
        }
        return JSONResponse(settings)

    async def _first_image(self, request: Request) -> Response:
        if not self._image:
            raise Refused(404, "the page begins with no image")
        return Response(self._image, media_type="application/octet-stream")

    async def _upload(self, request: Request) -> Response:
        """Takes an image file; its id for questions."""
        front = self._front
        bounds, backend = front.bounds, front.backend
        with front.desk.bytes_held.holding() as held:
            file = await read_body(request, bounds.image_bytes, held, bounds.body_seconds)
            image = await unless_gone(request.receive, front.desk.images.read(file, backend.config))
        name = image.key.hex()
        self._images[name] = image
        self._images.move_to_end(name)
        while len(self._images) > KEPT:
            self._images.popitem(last=False)
        return JSONResponse({"id": name})

    async def _ask(self, request: Request) -> Response:
        """Events of one answer: {"text": piece} as they come, then {"usage", "told", "answer", "query",
        "attention", "squares"}, the attention for the words that the compressor read; or an error."""
        front = self._front
        backend = front.backend
        with front.desk.bytes_held.holding() as held:
            wish = _wish(await read_body(request, MAX_JSON, held, front.bounds.body_seconds))
        if not self._images.keys() >= {*wish.images}:
            raise Refused(410, "the server no longer has this image; choose it again")
        images = tuple(self._images[name] for name in wish.images)
        question = Question(wish.text, images, tuple(wish.history), wish.query or self._query)
        asked = Asked(question, wish.limits(front.desk.own))

        async def events(pieces: Pieces) -> Events:
            text = list[str]()
            try:
                async for item in pieces:
                    if not isinstance(item, Usage):
                        text.append(item)
                        yield _event({"text": item})
                        continue
                    done = {"usage": item._asdict(), "told": item.told(), "answer": "".join(text)}
                    yield _event({**done, "query": question.asked(), **await _looked(backend, asked)})
            except Exception as error:
                yield b"data: " + refusal(error).body() + b"\n\n"

        return await front.answers.stream(request.receive, backend, asked, events)


def _event(event: Json) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()


async def _looked(backend: Backend, asked: Asked) -> Json:
    """`attention` [I, V, N], the mean over heads of every visual token's, and how many `squares` along a
    side of the image belong to one token each, see `own_squares`; both None without."""
    weights = await backend.attention(asked) if asked.question.images else None
    if weights is None:
        return {"attention": None, "squares": None}
    mean = weights.mean(axis=2)
    return {
        "attention": np.round(mean.reshape(*mean.shape[:2], -1), 5).tolist(),
        "squares": own_squares(weights[0]),
    }


class _Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question as the page sends it; None is the server's own setting."""

    text: str = ""
    history: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    query: Query | None = None
    temperature: Finite | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] | None = None

    def limits(self, own: Limits) -> Limits:
        """How it wants its answer to be chosen, where the server's own is this."""
        limits = own
        if self.temperature is not None:
            sampling = (own.sampling or Sampling())._replace(temperature=self.temperature)
            limits = limits._replace(sampling=unless_greedy(sampling))
        return limits if self.seed is None else limits._replace(seed=self.seed)


def _wish(body: bytes) -> _Wish:
    """Raises Refused unless each field has the type that it must have."""
    name = "the question"
    try:
        wish = of_form(json_value(body, name, "ask again"), _Wish, name, "ask again")
        "".join((wish.text, *wish.history)).encode()
    except (Damaged, UnicodeEncodeError):
        raise Refused(400, "the question is not of the form that the page sends") from None
    return wish
