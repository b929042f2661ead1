"""Notices that the machine is about to be taken away, and ends a run that cannot."""

import contextlib
import functools
import math
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

START_S = 5.0
"""Seconds that a run has to end in after SIGTERM before its first step is done: there is nothing to save."""
GRACE_S = 30.0
"""Seconds from SIGTERM to the save, as many as machines are usually given, and from the save to the end."""
SAVE_S = 600.0
"""Seconds that the save may take."""
TOGETHER_S = 0.2
"""Seconds within which a signal that comes again is the same one: `timeout`, for one, sends it to the process and right
behind it to its group."""


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
    """Takes note of SIGTERM while it is entered; several processes agree on the step to stop at.

    Python hears a signal only between two instructions of its main thread, which may compile for minutes or wait
    for a disk that does not answer. So a thread listens too, where the run has one process: it ends the process
    when the seconds above are over, or at once on a second SIGTERM or Ctrl-C.

    Args:
      run: for messages.

    Raises:
      Preempted: inside, when SIGTERM comes before `reached` was called for the first time.
    """

    def __init__(self, run: str = "") -> None:
        self.run = run
        self._noticed = self._interrupted = self._stepping = False
        self._limit_s, self._since = START_S, time.monotonic()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        # JAX listens itself where it runs several processes; Python hears signals in its main thread alone.
        if not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
            before: Any = signal.signal(signal.SIGTERM, self._notice)
            self._stack.callback(signal.signal, signal.SIGTERM, before)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._stack.callback(signal.signal, signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGINT, self._interrupt)
                self._stack.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
                sys.unraisablehook = functools.partial(_unless_interrupted, sys.unraisablehook)
            self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _listen(self) -> None:
        """Starts the thread, unless a program around this one has the signals' numbers written to itself."""
        inner, outer = socket.socketpair()
        outer.setblocking(False)
        before = signal.set_wakeup_fd(outer.fileno(), warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before)
            return
        thread = threading.Thread(target=self._watch, args=(inner,), name="preemption", daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(outer.close)
        self._stack.callback(signal.set_wakeup_fd, -1)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        # It may come twice for one, and the second must not end what the first one closes.
        again, self._noticed = self._noticed, True
        if not self._stepping and not again:
            raise Preempted(f"{self.run}: stopped on SIGTERM before its first step")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupted = True
        raise KeyboardInterrupt

    def _watch(self, numbers: socket.socket) -> None:
        """Reads the numbers of signals, which Python writes as they come, until the other end is closed."""
        heard, came = b"", dict[int, float]()
        with numbers:
            while True:
                numbers.settimeout(0.2 if heard else None)
                with contextlib.suppress(TimeoutError):
                    new = numbers.recv(64)
                    if not new:
                        return
                    now = time.monotonic()
                    if not heard:
                        self._since = now
                    for number in new:
                        again = now - came.get(number, -math.inf) < TOGETHER_S
                        if number in (signal.SIGTERM, signal.SIGINT) and not again:
                            came[number] = now
                            heard += bytes([number])
                if len(heard) > 1:
                    self._leave(heard[-1], "ended at once on a second signal")
                # What Ctrl-C interrupts may take longer to close: a save that is under way.
                limited = heard and (signal.SIGTERM in heard or not self._stepping)
                if limited and time.monotonic() - self._since > self._limit_s:
                    name = signal.Signals(heard[0]).name
                    self._leave(heard[0], f"did not end within {self._limit_s:g} s of {name}")

    def _leave(self, number: int, what: str) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        line = f"error: {self.run} {what}; the same command goes on from the newest checkpoint\n"
        # Stderr may be what the main thread waits for.
        if select.select([], [2], [], 0)[1]:
            os.write(2, line.encode()[: select.PIPE_BUF])
        os._exit(128 + number)

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; ask once after every step, in all processes."""
        self._stepping = True
        self._now(GRACE_S)
        if self._interrupted:
            # It was raised in a callback, such as XLA's of the garbage collector, from which nothing gets out.
            raise KeyboardInterrupt
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Allows what is inside the time of a save."""
        self._now(SAVE_S)
        yield
        self._now(GRACE_S)

    def _now(self, limit_s: float) -> None:
        self._limit_s, self._since = limit_s, time.monotonic()


def _unless_interrupted(show: Callable[[Any], object], lost: Any) -> None:
    """Shows an exception that nothing could be raised from, but for those that `reached` is to make up for."""
    if not isinstance(lost.exc_value, KeyboardInterrupt | Preempted):
        show(lost)
