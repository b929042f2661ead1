"""A connection that nobody can hold for nothing: uvicorn's own, with a time for each of its states.

This relies on how uvicorn 0.54's `H11Protocol` names its parts (`cycle`, `flow`, `conn`, `connections`) and on its
methods being called as they are there; `tests/serve/test_hostile.py` fails where a release moves them.
"""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from quecc_jax.serve.web.bounds import Bounds
from quecc_jax.serve.web.refusals import OWN_HEADERS, Refused

SLACK = 2.0
"""Seconds that the application has to refuse a slow body by itself, before its connection is cut, and that a
connection may take to close."""


class _Transport:
    """A transport that closes in another way."""

    def __init__(self, inner: asyncio.Transport, close: Callable[[], None]):
        self.inner, self.close = inner, close

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class BoundedProtocol(H11Protocol):
    """One connection of a server; a subclass has its bounds, see `bounded`."""

    bounds: ClassVar[Bounds] = Bounds()

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._timer: asyncio.TimerHandle | None = None
        self._state = ""
        self._ended = False
        """Nothing more is said; what still comes is let go."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self._close))  # type: ignore[arg-type]
        many = len(self.connections) - self.bounds.connections
        if many > self.bounds.connections:
            self.transport.abort()
        elif many > 0:
            self._reply(Refused(503, "the server has too many connections; try again soon", again=1))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def data_received(self, data: bytes) -> None:
        if not self._ended:
            super().data_received(data)
            self._watch()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._reply(Refused(400, "this is no request of HTTP/1.1; see RFC 9112"))
        else:
            # Behind an answer that is under way nothing can be said.
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._body_is_coming():
            self.transport.close()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        if not self._ended:
            super().timeout_keep_alive_handler()
            self._watch()

    def shutdown(self) -> None:
        """The server stops: what has not asked yet, and what does not read, is not waited for."""
        if self._state in ("body", "unread", "ended"):
            self.transport.abort()
        else:
            super().shutdown()

    def _reply(self, refused: Refused) -> None:
        """A whole reply outside of any request, and the end of the connection."""
        body = refused.body()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        headers |= OWN_HEADERS | refused.headers
        lines = [f"HTTP/1.1 {refused.status} ", *(f"{name}: {value}" for name, value in headers.items())]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self._end()

    def _close(self) -> None:
        if self._body_is_coming() and not self.transport.is_closing():
            self._end()
        else:
            self.transport.inner.close()  # type: ignore[attr-defined]
            self._watch()

    def _end(self) -> None:
        """Reads on until the client is done: browsers send all before they read a reply, and a connection that is
        closed with bytes unread breaks and takes the reply with it."""
        if not self._ended:
            self._ended = True
            try:
                self.transport.write_eof()
                self.flow.resume_reading()
            except OSError:
                # The client has gone in the meantime.
                self.transport.abort()
            self._watch()

    def _body_is_coming(self) -> bool:
        return self.cycle is not None and self.conn.their_state is h11.SEND_BODY

    def _now(self) -> tuple[str, float]:
        """The state of the connection, and the seconds that it may last; 0 for those that the application bounds."""
        bounds = self.bounds
        if self.transport.is_closing():
            return "closing", SLACK
        if self._ended:
            return "ended", bounds.linger_seconds if self._body_is_coming() else SLACK
        if self.flow.write_paused:
            return "unread", bounds.lag_seconds
        if self._body_is_coming():
            return "body", bounds.body_seconds + SLACK
        if self.cycle is None or self.cycle.response_complete:
            return "head", bounds.head_seconds
        return "answer", 0.0

    def _watch(self) -> None:
        """Begins to count where the state is another than before."""
        state, seconds = self._now()
        if state == self._state:
            return
        self._stop()
        self._state = state
        if seconds:
            self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded(bounds: Bounds) -> type[BoundedProtocol]:
    """The protocol of a server with these bounds."""
    return type("Protocol", (BoundedProtocol,), {"bounds": bounds})
