"""A profiler trace of some steps, for TensorBoard, XProf or Perfetto."""

import contextlib
import re

import jax
from jaxtyping import PyTree

from quecc_jax.errors import UserError
from quecc_jax.paths import local_output


def parse_window(text: str) -> range:
    """The steps that `profile` names: "10:15" is 10 to 15, both traced; "" is none.

    Raises:
      UserError: it is not FIRST:LAST with 1 <= FIRST <= LAST.
    """
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"profile {text} is not a window of steps; write FIRST:LAST, as in 10:15")
    return range(int(found[1]), int(found[2]) + 1)


class Profile:
    """Traces the steps of a window into a folder. A context: what is running at its end is written."""

    def __init__(self, window: range, folder: str):
        self.window, self.folder = window, folder
        self._trace: contextlib.ExitStack | None = None

    def before(self, step: int, pending: PyTree) -> None:
        """Starts the trace if `step` is the first of the window that is run; waits for `pending`, the
        step before, so that none of it is in the trace."""
        if step in self.window and self._trace is None:
            jax.block_until_ready(pending)
            self._trace = contextlib.ExitStack()
            folder = self._trace.enter_context(local_output(self.folder))
            self._trace.enter_context(jax.profiler.trace(str(folder)))

    def after(self, step: int, results: PyTree) -> None:
        """Ends the trace if `step` is the last of the window, once its results are there."""
        if self._trace is not None and step == self.window[-1]:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if self._trace is not None:
            self._trace.close()
            self._trace = None

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
