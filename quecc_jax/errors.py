"""The one exception that reaches a person as a sentence instead of a traceback."""

import sys
from collections.abc import Callable
from typing import Literal

Fault = Literal[
    "not a row",
    "text",
    "turns",
    "placeholders",
    "too many pictures",
    "too long",
    "picture missing",
    "picture broken",
    "picture size",
    "modality",
]
"""What can be wrong with one row of a data set: it is no JSON object or has fields of the wrong type;
text that is not UTF-8; no conversation of human and assistant in turn; other numbers of placeholders and
pictures; more pictures than a row has room for; more tokens than fit, and not to be cut; a picture that
is not there, cannot be read, or is absurdly large or narrow; inputs other than text and pictures."""


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one sentence."""

    def at(self, where: str) -> "UserError":
        """The same error, with the place where it happened in front."""
        return type(self)(f"{where}: {self}")


class BadRow(UserError):
    """A row of a data set that cannot be learned from; `data.bad_rows` says what becomes of it."""

    def __init__(self, fault: Fault, message: str):
        super().__init__(fault, message)
        self.fault: Fault = fault

    def __str__(self) -> str:
        return str(self.args[1])

    def at(self, where: str) -> "BadRow":
        return BadRow(self.fault, f"{where}: {self}")


def run_cli(main: Callable[[], None]) -> None:
    """Runs a command line: a UserError becomes one line on stderr and exit status 1.

    Every `launch/` script ends in `run_cli(main)`. Interruption by Ctrl-C exits with 130, as
    shells expect; any other exception is a defect of ours and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
