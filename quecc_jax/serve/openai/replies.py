"""OpenAI's form of an answer, whole and in events of a stream, and of the list of models."""

from typing import Literal

import msgspec

from quecc_jax.generate.questions import Usage


class PromptDetails(msgspec.Struct, frozen=True):
    """What a prompt was made of."""

    visual_tokens: int


class Tokens(msgspec.Struct, frozen=True):
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Message(msgspec.Struct, frozen=True):
    """The answer."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(msgspec.Struct, frozen=True):
    """The one answer of a request."""

    message: Message
    finish_reason: Literal["stop", "length"]
    index: int = 0
    logprobs: None = None


class Completion(msgspec.Struct, frozen=True):
    """The reply to a chat request."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Tokens
    told: str
    """What of the question the model did not read, in words; empty where it read all."""
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes next of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """A piece of the one answer."""

    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    index: int = 0
    logprobs: None = None


class Chunk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: str
    usage: Tokens | msgspec.UnsetType | None = msgspec.UNSET
    told: str = ""


class Model(msgspec.Struct, frozen=True):
    """A model that answers."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "quecc_jax"


class Models(msgspec.Struct, frozen=True):
    """All that do."""

    data: list[Model]
    object: Literal["list"] = "list"


class Health(msgspec.Struct, frozen=True):
    """Whether the model answers."""

    status: Literal["ok", "loading", "stopping"]


def tokens_of(usage: Usage) -> Tokens:
    """A usage as OpenAI counts it."""
    return Tokens(
        usage.prompt_tokens,
        usage.new_tokens,
        usage.prompt_tokens + usage.new_tokens,
        PromptDetails(usage.visual_tokens),
    )


def finish_reason(usage: Usage) -> Literal["stop", "length"]:
    """Why an answer ended."""
    return "length" if usage.ended_by == "length" else "stop"
