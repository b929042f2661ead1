"""Prompts in line for the one thread that makes their embeddings, batch after batch."""

import asyncio
import itertools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from quecc_jax.generate.questions import Prompt
from quecc_jax.serve.backend import Busy

Make = Callable[[Hashable, Sequence[Prompt]], list[np.ndarray]]


class Waiting(NamedTuple):
    """A prompt in line."""

    kind: Hashable
    prompt: Prompt
    made: asyncio.Future[np.ndarray]


class EmbeddingLine:
    """What comes while a batch is made waits for the next one.

    Args:
      make: embeddings of prompts of one kind; it runs in `thread`.
      most: prompts of a batch.
      waiting: prompts that may stand in line.
    """

    def __init__(self, make: Make, most: int, waiting: int):
        self.thread = ThreadPoolExecutor(1, "encoder")
        self._make, self._most, self._waiting = make, most, waiting
        self._line: dict[int, Waiting] = {}
        self._numbers = itertools.count()
        self._work: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._line)

    async def embeddings(self, kind: Hashable, prompt: Prompt) -> np.ndarray:
        """float32 [S, M] of a prompt, of those that may share a batch with all of its kind.

        Raises:
          Busy: too many are in line.
          UserError: as what makes them.
        """
        if len(self._line) >= self._waiting:
            raise Busy(1.0)
        loop, number = asyncio.get_running_loop(), next(self._numbers)
        self._line[number] = Waiting(kind, prompt, loop.create_future())
        if self._work is None or self._work.done():
            self._work = loop.create_task(self._serve())
        try:
            return await self._line[number].made
        finally:
            # Whoever is cancelled leaves the line.
            self._line.pop(number, None)

    async def _serve(self) -> None:
        while self._line:
            kind = next(iter(self._line.values())).kind
            alike = [number for number, one in self._line.items() if one.kind == kind][: self._most]
            await self._settle(kind, [self._line.pop(number) for number in alike])

    async def _settle(self, kind: Hashable, taken: Sequence[Waiting]) -> None:
        prompts = [one.prompt for one in taken]
        try:
            made = await asyncio.get_running_loop().run_in_executor(self.thread, self._make, kind, prompts)
        except Exception as error:
            if len(taken) == 1:
                if not taken[0].made.done():
                    taken[0].made.set_exception(error)
                return
            # One of them spoils the batch of all.
            for one in taken:
                await self._settle(kind, [one])
            return
        for one, embeddings in zip(taken, made, strict=True):
            if not one.made.done():
                one.made.set_result(embeddings)
