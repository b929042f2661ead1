"""How much of this machine all clients together, and each alone, can hold."""

import asyncio
import collections
import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from quecc_jax.serve.web.refusals import Refused


class Bounds(NamedTuple):
    """Limits of a server."""

    connections: int = 512
    """That are open at a time, idle ones too."""
    request_bytes: int = 20_000_000
    """Of a request's body."""
    held_bytes: int = 100_000_000
    """Of bodies of all requests at a time, until their images are decoded."""
    image_bytes: int = 10_000_000
    """Of an image's file."""
    pixels: int = 25_000_000
    """Of an image."""
    held_pixels: int = 50_000_000
    """That are being decoded at a time."""
    head_seconds: float = 10.0
    """From a connection, or the end of a reply, to the end of the next request's head."""
    body_seconds: float = 60.0
    """From there to the end of its body."""
    lag_seconds: float = 20.0
    """That a reader may leave a full connection unread."""
    linger_seconds: float = 30.0
    """That a request which was refused may go on being sent."""
    answer_seconds: float = 600.0
    """From a request's body to the end of its answer, waiting included."""
    fetch_seconds: float = 10.0
    """Of an image's download."""
    answer_tokens: int = 1024
    """Longest answer that a request may ask for."""


class Room:
    """So many of something, such as bytes, that all requests share. Of one event loop."""

    def __init__(self, size: int):
        self.size, self.taken = size, 0
        self._waiting: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()

    def take(self, amount: int, what: str) -> None:
        """Takes some.

        Raises:
          Refused: there are not so many left.
        """
        if self.taken + amount > self.size:
            raise Refused(503, f"{what} of other requests fill the server; try again soon", again=1)
        self.taken += amount

    async def wait_for(self, amount: int) -> None:
        """Takes some when they are free, in the order of asking; more than there are, when nothing else is taken."""
        amount = min(amount, self.size)
        if not self._waiting and self.taken + amount <= self.size:
            self.taken += amount
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(amount)
            else:
                self._waiting.remove((amount, turn))
                self._wake()
            raise

    def give(self, amount: int) -> None:
        """Gives some back that were taken."""
        self.taken -= min(amount, self.size)
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.taken + self._waiting[0][0] <= self.size:
            amount, turn = self._waiting.popleft()
            if not turn.cancelled():
                self.taken += amount
                turn.set_result(None)

    @contextlib.contextmanager
    def holding(self) -> Iterator["Holding"]:
        """What one request takes bit by bit, and gives back as a whole."""
        held = Holding(self)
        try:
            yield held
        finally:
            self.give(held.amount)


class Holding:
    """What one request holds of a `Room`."""

    def __init__(self, room: Room):
        self.room, self.amount = room, 0

    def take(self, amount: int, what: str) -> None:
        """As `Room.take`."""
        self.room.take(amount, what)
        self.amount += amount
