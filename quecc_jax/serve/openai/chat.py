"""POST /v1/chat/completions: a question of OpenAI's form to a backend, and its answer back, whole or as it comes."""

import secrets
import time
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.errors import UserError
from quecc_jax.generate.questions import Limits, Question, Usage
from quecc_jax.serve.answers import Answers, Events, Pieces
from quecc_jax.serve.backend import Asked, Backend
from quecc_jax.serve.images import Images
from quecc_jax.serve.openai.forms import ChatRequest, Said, conversation, limits_of, read_request
from quecc_jax.serve.openai.replies import (
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    Message,
    finish_reason,
    tokens_of,
)
from quecc_jax.serve.web.bodies import read_body
from quecc_jax.serve.web.bounds import Bounds, Holding, Room
from quecc_jax.serve.web.clients import unless_gone
from quecc_jax.serve.web.refusals import Refused, refusal


class Desk(NamedTuple):
    """What a server answers with."""

    model: str
    """Its name for clients."""
    own: Limits
    """How answers are chosen where a request leaves it open."""
    bounds: Bounds
    bytes_held: Room
    images: Images
    answers: Answers


class _Wanted(NamedTuple):
    """A request, without the bytes of its images."""

    asked: Asked
    stream: bool
    counts: bool
    """Whether the stream ends with the usage."""


async def chat(request: Request, desk: Desk, backend: Backend) -> Response:
    """Answers a request.

    Raises:
      Refused: it is malformed, too large, or asks for what is not there.
      UserError, Busy: of the backend.
      ClientDisconnect: the client left.
    """
    wanted = await _wanted(request, desk, backend)
    reply = _Reply(desk.model, wanted.counts)
    if wanted.stream:
        return await desk.answers.stream(request.receive, backend, wanted.asked, reply.events)
    return reply.whole(*await desk.answers.whole(request.receive, backend, wanted.asked))


async def _wanted(request: Request, desk: Desk, backend: Backend) -> _Wanted:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "the body must be JSON; send Content-Type: application/json")
    bounds = desk.bounds
    with desk.bytes_held.holding() as held:
        form = read_request(await read_body(request, bounds.request_bytes, held, bounds.body_seconds))
        if form.model != desk.model:
            named = f"there is no model {form.model[:80]!r} here; ask {desk.model!r}"
            raise Refused(404, named, "model", "model_not_found")
        if form.stream_options is not None and not form.stream:
            raise Refused(400, "stream_options goes with stream; set that or leave it out", "stream_options")
        limits = limits_of(form, desk.own, bounds.answer_tokens)
        said = conversation(form.messages)
        asked = await unless_gone(request.receive, _asked(form, said, limits, desk, backend, held))
    counts = form.stream_options is not None and bool(form.stream_options.include_usage)
    return _Wanted(asked, bool(form.stream), counts)


async def _asked(
    form: ChatRequest, said: Said, limits: Limits, desk: Desk, backend: Backend, held: Holding
) -> Asked:
    config, visual = backend.config, form.visual_tokens or 0
    if len(said.images) > config.data.images_per_row:
        raise Refused(
            400,
            f"{len(said.images)} images are given but the model was trained with at most "
            f"{config.data.images_per_row} a question; give fewer",
            "messages",
        )
    try:
        at_visual_tokens(config.model, visual)
    except UserError as error:
        raise Refused(400, f"visual_tokens: {error}", "visual_tokens") from None
    images = await desk.images.of_question(said.images, config, visual, held)
    *history, text = said.turns
    question = Question(text, images, tuple(history), form.query or "own", name="in messages")
    return Asked(question, limits, visual)


class _Reply:
    """What an answer becomes."""

    def __init__(self, model: str, counts: bool):
        self._model, self._counts = model, counts
        self._name, self._made = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, text: str, usage: Usage) -> Response:
        """All of it in one body."""
        choice = Choice(Message(text), finish_reason(usage))
        body = Completion(self._name, self._made, self._model, [choice], tokens_of(usage), usage.told())
        return Response(msgspec.json.encode(body), media_type="application/json")

    async def events(self, pieces: Pieces) -> Events:
        """The same in events as it comes; an error is the last one."""
        try:
            yield self._event([ChunkChoice(Delta("assistant", ""))])
            async for item in pieces:
                if not isinstance(item, Usage):
                    yield self._event([ChunkChoice(Delta(content=item))])
                    continue
                yield self._event([ChunkChoice(Delta(), finish_reason(item))], told=item.told())
                if self._counts:
                    yield self._event([], item)
            yield b"data: [DONE]\n\n"
        except Exception as error:
            yield b"data: " + refusal(error).body() + b"\n\n"

    def _event(self, choices: list[ChunkChoice], usage: Usage | None = None, told: str = "") -> bytes:
        counted = None if usage is None else tokens_of(usage)
        chunk = Chunk(
            id=self._name,
            created=self._made,
            model=self._model,
            choices=choices,
            object="chat.completion.chunk",
            usage=counted if self._counts else msgspec.UNSET,
            told=told,
        )
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
