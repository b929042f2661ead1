"""What answers questions for a server: this process's own engine, or another behind it."""

from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from quecc_jax.config import RunConfig
from quecc_jax.generate.questions import Limits, Question, Usage


class Asked(NamedTuple):
    """A question of a client."""

    question: Question
    limits: Limits
    visual_tokens: int = 0
    """V of its images, for an elastic model; 0 is the server's own."""


class Busy(Exception):
    """Too many questions are waiting; says after how many seconds to ask again."""

    def __init__(self, seconds: float):
        super().__init__(f"too many questions are waiting; ask again in {seconds:.0f} s")
        self.seconds = seconds


class Away(Exception):
    """What answers behind the backend cannot be reached, or is in trouble."""


class Backend(Protocol):
    """A model that answers."""

    config: RunConfig
    """Of the model, as it answers."""

    def answer(self, asked: Asked) -> AsyncGenerator[str | Usage]:
        """Pieces of the answer's text as they come, and its `Usage` at the end; closing it cancels the answer.

        Raises:
          UserError: the question does not fit this model; before the first piece.
          Busy: too many wait; before the first piece.
          Away: what answers for it does not, at any time.
        """

    async def attention(self, asked: Asked) -> np.ndarray | None:
        """Where the compressor looks: float32 [I, V, H, g, g], see `Engine.attention`; None without."""


class State(NamedTuple):
    """What a backend may say of itself, by a method `state()`."""

    waiting: int
    """Questions that have no slot yet."""
    running: int
    slots: int
    """Questions that it answers at a time, at most."""
    hits: Mapping[str, int]
    """Features that were remembered, of `questions` and of `images`."""
    misses: Mapping[str, int]
