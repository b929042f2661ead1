"""The one exception that reaches a person as a sentence instead of a traceback."""

import os
import select
import sys
import warnings
from collections.abc import Callable
from typing import Literal, TextIO

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
images; more images than a row has room for; more tokens than fit, and not to be cut; an image that is not
there, cannot be read, or is absurdly large or narrow; inputs other than text and images. Reports and saved
counts hold these words."""


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one sentence."""

    def at(self, where: str) -> "UserError":
        """The same error, with the place where it happened in front."""
        return type(self)(f"{where}: {self}")


class Note(UserWarning):
    """A warning for a person: one sentence, without the place in the code that it came from."""


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
    """Runs a program: a UserError becomes `error: ...` on stderr and exit status 1, a Note `note: ...`.

    Interruption by Ctrl-C exits with 130 and a reader of stdout that went away, such as `head`, with 141, as
    shells expect; any other exception is a defect of ours and keeps its traceback.
    """
    try:
        with warnings.catch_warnings():
            _show_notes_as_sentences()
            main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        print("error: paths in a bucket (gs://) need the package gcsfs: pip install gcsfs", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Of another pipe, such as a subprocess's, it is a defect.
        if not _stdout_has_no_reader():
            raise
        # What is still buffered goes nowhere, or Python would complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _stdout_has_no_reader() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def _show_notes_as_sentences() -> None:
    """Until the end of the surrounding `catch_warnings`; other warnings are shown as before."""
    show_others, said = warnings.showwarning, set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, Note):
            show_others(message, category, filename, lineno, file, line)
        elif str(message) not in said:
            said.add(str(message))
            print(f"note: {message}", file=file or sys.stderr)

    warnings.showwarning = show
    warnings.simplefilter("always", Note)
