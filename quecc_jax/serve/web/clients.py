"""What is done for a client only as long as it is there."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What work gives; it is cancelled when the client leaves. The request's body has been read before.

    Raises:
      ClientDisconnect: the client left.
    """

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.create_task(left())
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.wait((doing, leaving))
        if not doing.cancelled():
            doing.exception()  # Heard, even where nobody is left to hear it.


class EventStream(Response):
    """A reply of server-sent events.

    Args:
      events: their bytes, as they come.
      done: is called at the end, however it comes and whether an event was sent or not.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], done: Callable[[], Awaitable[None]]):
        # A proxy that gathers a reply would hold it back until its end.
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._done = events, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(receive, self._send(send))
        except ClientDisconnect:
            pass
        finally:
            await self._events.aclose()
            await self._done()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
