"""OpenAI's form of a chat request, as far as a model here can follow it.

A field that asks for what is not done here is refused by its name; only those that change no answer are passed over.
"""

import re
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from quecc_jax.data.text.templates import PLACEHOLDER
from quecc_jax.generate.questions import Limits, Query
from quecc_jax.generate.sampling import Sampling, unless_greedy
from quecc_jax.records import Damaged, json_value
from quecc_jax.serve.images import Shown
from quecc_jax.serve.web.refusals import Refused

STRUCTURE = 50_000
"""Commas and opening brackets of a request's body: what a parser makes of them is a hundred times as large."""

Natural = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Whole = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
StopText = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Zero = Annotated[float, msgspec.Meta(ge=0, le=0)]
NoItems = Annotated[list[Any], msgspec.Meta(max_length=0)]
NoEntries = Annotated[dict[str, Any], msgspec.Meta(max_length=0)]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A text of a message."""

    text: str


class ImageUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an image is."""

    url: str
    """A data URI, or an http address of a host that the server allows."""
    detail: Literal["auto"] | None = None


class ImagePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image_url"):
    """An image of a message."""

    image_url: ImageUrl


class UserMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="user"):
    """What a person says and shows."""

    content: str | Annotated[list[TextPart | ImagePart], msgspec.Meta(min_length=1)]
    name: None = None


class AssistantMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", tag="assistant"
):
    """What the model said; with the empty fields that clients send back with it."""

    content: str | Annotated[list[TextPart], msgspec.Meta(min_length=1)]
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: NoItems | None = None
    annotations: NoItems | None = None


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one form of an answer."""

    type: Literal["text"]


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question with its conversation; None is the server's own setting."""

    model: str
    messages: Annotated[list[UserMessage | AssistantMessage], msgspec.Meta(min_length=1)]
    max_tokens: Natural | None = None
    max_completion_tokens: Natural | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Whole | None = None
    stop: StopText | Annotated[list[StopText], msgspec.Meta(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Of this server.
    visual_tokens: Natural | None = None
    query: Query | None = None
    top_k: Whole | None = None
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] | None = None

    # These say nothing about the answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None

    # These must say what is so anyway.
    n: Literal[1] | None = None
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: NoEntries | None = None
    tools: NoItems | None = None
    functions: NoItems | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], msgspec.Meta(max_length=1)] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None

    # These must say nothing, as they do from clients that write every field.
    audio: None = None
    prediction: None = None
    prompt_cache_retention: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None


UNDONE = (
    "n",
    "logprobs",
    "top_logprobs",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "tools",
    "functions",
    "tool_choice",
    "function_call",
    "response_format",
    "modalities",
    "store",
    "service_tier",
    "audio",
    "prediction",
    "prompt_cache_retention",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
    "name",
    "refusal",
    "tool_calls",
    "annotations",
    "detail",
)
"""Fields that may only say what is so anyway."""


def read_request(body: bytes) -> ChatRequest:
    """The request of a body.

    Raises:
      Refused: it is no JSON, or not of this form; names the field.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > STRUCTURE:
        raise Refused(400, "the request has more parts than a conversation can have; make it smaller")
    try:
        value = json_value(body, "the request", "send a JSON object")
    except Damaged as error:
        raise Refused(400, str(error)) from None
    try:
        request = msgspec.convert(value, ChatRequest)
    except (msgspec.ValidationError, OverflowError, UnicodeEncodeError) as error:
        raise _refused(str(error), value) from None
    for name in ("logprobs", "store"):
        if getattr(request, name):
            raise _undone(name)
    return request


def _undone(param: str) -> Refused:
    return Refused(
        400, f"{param} asks for what this server does not do; leave it out", param, "unsupported_parameter"
    )


def _refused(said: str, value: object) -> Refused:
    """msgspec's words for people."""
    reason, _, place = said.partition(" - at `")
    param = place.rstrip("`").removeprefix("$").removeprefix(".")
    if unknown := re.search("contains unknown field `(.*)`", reason):
        param = ".".join(filter(None, (param, unknown[1])))
        return Refused(
            400, f"{param} is no field that this server knows; leave it out", param, "unknown_parameter"
        )
    if not {*re.findall(r"\w+", param)}.isdisjoint(UNDONE):
        return _undone(param)
    if re.fullmatch(r"messages\[\d+\]\.role", param):
        return Refused(
            400,
            f"{param} must be user or assistant; a system sentence is part of the model's own template",
            param,
            "unsupported_value",
        )
    reason = reason[:1].lower() + reason[1:]
    return Refused(
        400, f"{param or 'the request'}: {reason}; /openapi.json says what it takes", param or None
    )


class Said(NamedTuple):
    """A conversation: its turns, each with a placeholder for every image that it shows, and these images."""

    turns: tuple[str, ...]
    images: tuple[Shown, ...]


def conversation(messages: list[UserMessage | AssistantMessage]) -> Said:
    """What messages say and show. Images that begin a message stand in front of it, a line each, as training has them;
    others where they are given.

    Raises:
      Refused: user and assistant do not alternate, or a text holds what stands for an image.
    """
    turns, images = list[str](), list[Shown]()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        expected = AssistantMessage if number % 2 else UserMessage
        if not isinstance(message, expected):
            raise Refused(400, f"{where}: user and assistant must alternate, the user first", f"{where}.role")
        content = [TextPart(message.content)] if isinstance(message.content, str) else message.content
        parts = list[str]()
        for index, part in enumerate(content):
            param = f"{where}.content" + ("" if isinstance(message.content, str) else f"[{index}]")
            if isinstance(part, ImagePart):
                parts.append(PLACEHOLDER)
                images.append(Shown(part.image_url.url, f"{param}.image_url.url"))
            elif PLACEHOLDER in part.text:
                raise Refused(
                    400, f"{param} holds {PLACEHOLDER}, which stands for an image; write it otherwise", param
                )
            else:
                parts.append(part.text)
        first = next((i for i, part in enumerate(parts) if part != PLACEHOLDER), len(parts))
        turns.append(f"{PLACEHOLDER}\n" * first + "\n".join(parts[first:]))
    if len(turns) % 2 == 0:
        raise Refused(400, "the last message must be the user's; it is answered", "messages")
    return Said(tuple(turns), tuple(images))


def limits_of(request: ChatRequest, own: Limits, most: int) -> Limits:
    """How a request wants its answer to be chosen.

    Args:
      own: the server's, of what the request leaves open.
      most: tokens of the longest answer.

    Raises:
      Refused: it asks for a longer one.
    """
    length = own.max_new_tokens
    for param in ("max_tokens", "max_completion_tokens"):
        asked = getattr(request, param)
        if asked is not None and asked > most:
            raise Refused(
                400, f"{param} is {asked}, more than the {most} that this server gives; ask for fewer", param
            )
        length = asked or length
    stop = own.stop if request.stop is None else request.stop
    sampling = own.sampling or Sampling(temperature=0.0)
    for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
        if (value := getattr(request, name)) is not None:
            sampling = sampling._replace(**{name: value})
    return Limits(
        length,
        (stop,) if isinstance(stop, str) else tuple(stop),
        unless_greedy(sampling),
        own.seed if request.seed is None else request.seed,
    )
