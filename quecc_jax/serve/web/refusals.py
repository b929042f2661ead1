"""What a client hears that is not served: a status, and one sentence in the form of OpenAI's errors."""

import math
import traceback
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from quecc_jax.errors import BadRow, UserError
from quecc_jax.serve.backend import Away, Busy

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""OpenAI's word for a kind of error, by its status; other mistakes of a client are invalid requests."""
OWN_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every reply."""


class Fault(msgspec.Struct, frozen=True):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    """The field of the request that was wrong, as in messages[0].content."""
    code: str | None


class Error(msgspec.Struct, frozen=True):
    """The body of every reply that is no answer."""

    error: Fault


class Refused(Exception):
    """A request that is not served."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        again: float | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        """A refusal.

        Args:
          status: of HTTP.
          message: what was wrong and what to do about it, in one sentence.
          again: after how many seconds to try again.
        """
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})
        if again is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(again)))

    def body(self) -> bytes:
        """As JSON."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        # Parts of it may come from a client, in any spelling.
        message = str(self).encode("utf-8", "replace").decode()
        return msgspec.json.encode(Error(Fault(message, kind, self.param, self.code)))

    def response(self) -> Response:
        """The whole reply."""
        return Response(self.body(), self.status, {**OWN_HEADERS, **self.headers}, "application/json")


def refusal(error: Exception) -> Refused:
    """What a client hears of an exception; of one that is a defect of ours, no more than that: the log has the rest."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(429, str(error), code="queue_full", again=error.seconds)
    if isinstance(error, Away):
        return Refused(503, str(error), code="away", again=5)
    if isinstance(error, BadRow) and error.fault == "too long":
        said = str(error).partition(";")[0]
        shorter = f"{said}; shorten the conversation, or ask with fewer visual_tokens"
        return Refused(400, shorter, "messages", "context_length_exceeded")
    if isinstance(error, UserError):
        return Refused(400, str(error))
    traceback.print_exception(error)
    return Refused(500, "the server failed at this request; its log says why", code="internal_error")
