"""Notices that the machine is about to be taken away."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preempted(SystemExit):
    """Training has stopped on SIGTERM, its state is saved, and the same call would continue it.

    A program that does not catch this ends with the status that shells give for SIGTERM.
    """

    def __init__(self, message: str):
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Preemption:
    """Takes note of SIGTERM while it is entered; several processes agree on the step to stop at."""

    def __init__(self) -> None:
        self._noticed = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        # JAX listens itself where it runs several processes; Python hears signals in its main thread alone.
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._noticed = True

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; ask once after every step, in all processes."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed
