"""Answers under way: made as fast as the model can, whoever reads them, and ended when nobody does any more."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive

from quecc_jax.generate.questions import Usage
from quecc_jax.serve.backend import Asked, Backend
from quecc_jax.serve.metrics import Metrics
from quecc_jax.serve.web.clients import EventStream, unless_gone
from quecc_jax.serve.web.refusals import Refused

Pieces = AsyncGenerator[str | Usage]
"""Of an answer: its text as it comes, and its usage at the end."""
Events = AsyncGenerator[bytes]
STOPPED = "the server is stopping; ask again"


class Answer:
    """One answer: iterating yields what the backend does, as it comes. Pieces wait here, at most as many as the answer
    may have tokens, so that a slow reader keeps neither the model nor its slot."""

    def __init__(self, backend: Backend, asked: Asked, seconds: float, metrics: Metrics):
        self._waiting: asyncio.Queue[str | Usage | Exception | None] = asyncio.Queue()
        self._seconds, self._metrics = seconds, metrics
        self._task = asyncio.create_task(self._make(backend, asked))

    async def _make(self, backend: Backend, asked: Asked) -> None:
        began = first = time.perf_counter()
        pieces = 0
        try:
            async with asyncio.timeout(self._seconds), aclosing(backend.answer(asked)) as stream:
                async for item in stream:
                    if isinstance(item, Usage):
                        now = time.perf_counter()
                        self._metrics.answered(item, (first if pieces else now) - began, now - began)
                    elif not pieces:
                        first = time.perf_counter()
                    pieces += 1
                    self._waiting.put_nowait(item)
            self._waiting.put_nowait(None)
        except TimeoutError:
            said = f"the answer took more than {self._seconds:g} s; ask for a shorter one, or again later"
            self._waiting.put_nowait(Refused(503, said, code="timeout", again=10))
        except asyncio.CancelledError:
            self._metrics.cancelled()
            raise
        except Exception as error:
            self._waiting.put_nowait(error)

    async def __aiter__(self) -> AsyncIterator[str | Usage]:
        while (item := await self._waiting.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def fail(self, error: Exception) -> None:
        """Ends it with an error, behind what there is of it."""
        self._task.cancel()
        self._waiting.put_nowait(error)

    async def close(self) -> None:
        """Ends it for good; waits until the backend has let it go."""
        self._task.cancel()
        await asyncio.wait((self._task,))


class Answers:
    """All answers of a server."""

    def __init__(self, seconds: float, metrics: Metrics):
        self.closing = False
        self._seconds, self._metrics = seconds, metrics
        self._under_way: set[Answer] = set()

    def begin(self, backend: Backend, asked: Asked) -> Answer:
        """A new one, which `end` has to be called for.

        Raises:
          Refused: the server is stopping.
        """
        if self.closing:
            raise Refused(503, STOPPED, code="stopping", again=1)
        answer = Answer(backend, asked, self._seconds, self._metrics)
        self._under_way.add(answer)
        return answer

    async def end(self, answer: Answer) -> None:
        """Lets go of one, finished or not."""
        self._under_way.discard(answer)
        await answer.close()

    async def whole(self, receive: Receive, backend: Backend, asked: Asked) -> tuple[str, Usage]:
        """An answer when it is complete.

        Raises:
          UserError, Busy, Refused: as `Backend.answer`, or the server is stopping.
          ClientDisconnect: the client left.
        """
        answer = self.begin(backend, asked)

        async def gathered() -> tuple[str, Usage]:
            text = list[str]()
            async for item in answer:
                if isinstance(item, Usage):
                    return "".join(text), item
                text.append(item)
            raise RuntimeError("the backend ended an answer without its usage")

        try:
            return await unless_gone(receive, gathered())
        finally:
            await self.end(answer)

    async def stream(
        self, receive: Receive, backend: Backend, asked: Asked, events: Callable[[Pieces], Events]
    ) -> Response:
        """An answer as it comes, once its first piece is there: what is wrong before is an ordinary reply.

        Args:
          events: of a stream, made of the pieces of the answer.

        Raises:
          UserError, Busy, Refused, ClientDisconnect: as `whole`.
        """
        answer = self.begin(backend, asked)
        try:
            pieces = aiter(answer)
            first = await unless_gone(receive, anext(pieces))
        except BaseException:
            await self.end(answer)
            raise

        async def all_pieces() -> Pieces:
            yield first
            async for piece in pieces:
                yield piece

        return EventStream(events(all_pieces()), lambda: self.end(answer))

    async def stop(self, seconds: float) -> None:
        """Begins no more, and after so many seconds ends those that still run with an error."""
        self.closing = True
        until = time.monotonic() + seconds
        while self._under_way and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for answer in [*self._under_way]:
            answer.fail(Refused(503, STOPPED, code="stopping", again=1))
