"""This process's own engine behind a server: one question at a time, the others wait in line."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.errors import UserError
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Usage
from quecc_jax.serve.backend import Asked, Backend, Busy, State

T = TypeVar("T")


def own_backend(engine: Engine, slots: int = 1, waiting: int = 8, longest_answer: int = 1024) -> Backend:
    """An engine as a backend.

    Args:
      slots: questions that are answered at a time.
      waiting: questions that may wait for a slot.
      longest_answer: tokens of the longest answer.
    """
    del slots, longest_answer  # One at a time, of any length.
    return OneAtATime(engine, waiting)


class OneAtATime:
    """Answers in one thread, in the order of asking; between two pieces an answer can be given up."""

    def __init__(self, engine: Engine, waiting: int):
        self.config = engine.config
        self._engine, self._waiting = engine, waiting
        self._thread = ThreadPoolExecutor(1, "model")
        self._model = asyncio.Lock()
        self._held = 0
        self._seconds = 1.0
        """What an answer took of late, on average."""

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(work))

    async def answer(self, asked: Asked) -> AsyncGenerator[str | Usage]:
        """As `Backend.answer`."""
        self._check(asked)
        if self._held > self._waiting:
            raise Busy(max(1.0, self._held * self._seconds))
        self._held += 1
        try:
            async with self._model:
                run = await self._in_thread(
                    functools.partial(self._engine.run, [asked.question], asked.limits)
                )
                pieces = iter(run)
                try:
                    while (piece := await self._in_thread(functools.partial(_next, pieces))) is not None:
                        yield piece
                finally:
                    # Behind what the thread is still doing for it.
                    self._thread.submit(getattr(pieces, "close", lambda: None))
                usage = run.usage[0]
                self._seconds += 0.2 * (usage.seconds - self._seconds)
                yield usage
        finally:
            self._held -= 1

    async def attention(self, asked: Asked) -> np.ndarray | None:
        """As `Backend.attention`."""
        self._check(asked)
        return await self._in_thread(functools.partial(self._engine.attention, asked.question))

    def state(self) -> State:
        """What it is doing."""
        counted = self._engine.reuse.counted
        running = int(self._model.locked())
        return State(
            self._held - running,
            running,
            1,
            {name: counter.hits for name, counter in counted.items()},
            {name: counter.misses for name, counter in counted.items()},
        )

    def _check(self, asked: Asked) -> None:
        model = self._engine.config.model
        if at_visual_tokens(model, asked.visual_tokens).visual_tokens != model.visual_tokens:
            raise UserError(
                f"this server answers with {model.visual_tokens} visual tokens of an image, not "
                f"{asked.visual_tokens}; leave visual_tokens out"
            )


def _next(pieces: Iterator[tuple[int, str]]) -> str | None:
    """The next piece; a thread cannot raise StopIteration into an event loop."""
    for _, text in pieces:
        return text
    return None
