"""This process's own engine behind a server: a thread of its own steps the scheduler, event loops ask it."""

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
import weakref
from collections.abc import AsyncGenerator

import numpy as np

from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Usage
from quecc_jax.generate.scheduler import Full, Scheduler, Ticket
from quecc_jax.serve.backend import Asked, Busy, State

IDLE = 0.5
"""Seconds after which an idle thread looks whether the program ends."""


def own_backend(
    engine: Engine, slots: int = 8, waiting: int = 64, longest_answer: int = 1024
) -> "OwnBackend":
    """An engine as a backend, with programs that are compiled when they are first needed.

    Args:
      slots: questions that are answered at a time.
      waiting: questions that may wait for a slot.
      longest_answer: tokens of the longest answer.

    Raises:
      UserError: as `Scheduler`.
    """
    return OwnBackend(Scheduler(engine, slots=slots, queue=waiting, longest_answer=longest_answer))


class OwnBackend:
    """A `Backend` on a scheduler, which nobody else may step."""

    def __init__(self, scheduler: Scheduler):
        self.config = scheduler.engines.first.config
        self._scheduler = scheduler
        ended = threading.Event()
        # The thread holds the scheduler, not this, so that it ends with this.
        weakref.finalize(self, ended.set)
        threading.Thread(target=_work, args=(scheduler, ended), name="model").start()

    async def answer(self, asked: Asked) -> AsyncGenerator[str | Usage]:
        """As `Backend.answer`."""
        loop, scheduler = asyncio.get_running_loop(), self._scheduler
        heard: asyncio.Queue[str | Usage | Exception] = asyncio.Queue()

        def deliver(item: str | Usage | Exception) -> None:
            # Of a loop that was closed nobody listens.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(heard.put_nowait, item)

        if scheduler.full:
            raise Busy(scheduler.patience())
        question = asked.question, asked.limits, deliver, asked.visual_tokens
        submitted = asyncio.ensure_future(asyncio.to_thread(scheduler.submit, *question))
        try:
            ticket = await asyncio.shield(submitted)
        except Full:
            raise Busy(scheduler.patience()) from None
        except asyncio.CancelledError:
            submitted.add_done_callback(self._give_up)
            raise
        try:
            while True:
                item = await heard.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Usage):
                    return
        finally:
            scheduler.cancel(ticket)

    def _give_up(self, submitted: "asyncio.Future[Ticket]") -> None:
        if not submitted.cancelled() and submitted.exception() is None:
            self._scheduler.cancel(submitted.result())

    async def attention(self, asked: Asked) -> np.ndarray | None:
        """As `Backend.attention`."""
        found: concurrent.futures.Future[np.ndarray | None] = concurrent.futures.Future()
        engine = self._scheduler.engines.at(asked.visual_tokens)

        def look() -> None:
            if found.set_running_or_notify_cancel():
                try:
                    found.set_result(engine.attention(asked.question))
                except Exception as error:
                    found.set_exception(error)

        self._scheduler.call(look)
        return await asyncio.wrap_future(found)

    def state(self) -> State:
        """What it is doing."""
        counted = self._scheduler.engines.first.reuse.counted
        return State(
            self._scheduler.waiting,
            self._scheduler.running,
            self._scheduler.slots,
            {name: counter.hits for name, counter in counted.items()},
            {name: counter.misses for name, counter in counted.items()},
        )


def _work(scheduler: Scheduler, ended: threading.Event) -> None:
    """Steps until the backend or the program ends, of which the latter waits for this thread."""
    while not ended.is_set() and threading.main_thread().is_alive():
        scheduler.wait(IDLE)
        try:
            scheduler.step()
        except Exception:
            # Who asked was told; the next may be answered.
            logging.getLogger(__name__).exception("the answers under way were lost")
