"""The server's description in OpenAPI, made of the forms that its requests and replies have."""

from collections.abc import Sequence
from typing import Any

import msgspec

from quecc_jax.serve.openai.forms import ChatRequest
from quecc_jax.serve.openai.replies import Chunk, Completion, Health, Models
from quecc_jax.serve.web.refusals import Error

REFUSED = {
    400: "The request is malformed, or asks for what the model or this server cannot do.",
    401: "No API key, or none of this server.",
    403: "The request calls the server by another name, or comes from another site's page.",
    404: "There is no such model.",
    408: "The request took too long to come.",
    411: "The request does not say its length.",
    413: "The request, or an image, is too large.",
    415: "The body is no JSON, or an image of no accepted kind.",
    429: "Too many requests, or too many questions that wait; Retry-After says for how long.",
    500: "The server failed; its log says why.",
    503: "The server is loading, stopping or full; Retry-After says for how long.",
}


EVENT = {
    "type": "object",
    "properties": {
        "data": {
            "anyOf": [
                {"const": "[DONE]"},
                {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": "#/components/schemas/Chunk"},
                },
            ]
        }
    },
    "required": ["data"],
}
"""One of a stream; the last one's data is [DONE]."""


def description(keys: bool) -> dict[str, Any]:
    """OpenAPI 3.1.

    Args:
      keys: whether requests must have an API key.
    """
    _, parts = msgspec.json.schema_components(
        (ChatRequest, Completion, Chunk, Models, Health, Error), ref_template="#/components/schemas/{name}"
    )
    components: dict[str, Any] = {"schemas": parts}
    if keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    sender = (401,) if keys else (403,)
    chat = {
        "operationId": "chat",
        "summary": "Answers the last message of a conversation about images.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("ChatRequest")}}},
        "responses": {
            "200": {
                "description": "The answer, or with stream its pieces as server-sent events, each a Chunk.",
                "content": {
                    "application/json": {"schema": _ref("Completion")},
                    "text/event-stream": {"schema": EVENT},
                },
            },
            **_refused((400, *sender, 404, 408, 411, 413, 415, 429, 500, 503)),
        },
    }
    models = _get("models", "Lists the model.", "Models", (*sender, 429, 500))
    health = _get("healthz", "Says whether the model answers.", "Health", (500,))
    health["responses"]["503"] = _reply("It does not yet, or no more.", "Health")
    if keys:
        chat["security"] = models["security"] = [{"key": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "quecc_jax", "version": "1", "description": "Answers questions about images."},
        "paths": {
            "/v1/chat/completions": {"post": chat},
            "/v1/models": {"get": models},
            "/healthz": {"get": health},
        },
        "components": components,
    }


def _get(name: str, summary: str, form: str, refused: Sequence[int]) -> dict[str, Any]:
    replies = {"200": _reply(summary, form), **_refused(refused)}
    return {"operationId": name, "summary": summary, "responses": replies}


def _refused(statuses: Sequence[int]) -> dict[str, Any]:
    return {str(status): _reply(REFUSED[status], "Error") for status in sorted(statuses)}


def _reply(about: str, form: str) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": _ref(form)}}}


def _ref(form: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{form}"}
