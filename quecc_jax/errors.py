"""The one exception that reaches a person as a sentence instead of a traceback."""

import _thread
import atexit
import contextlib
import errno
import functools
import os
import re
import select
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn, TextIO

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


DISK = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room in the quota",
    errno.EROFS: "have it mounted for writing",
    errno.EIO: "have the disk looked at",
    errno.ESTALE: "have it mounted again",
    errno.EACCES: "have its permissions changed",
    errno.EPERM: "have its permissions changed",
}
"""What a file system can refuse in the middle of a program that is right, and what to do about it."""
SPOKEN = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Those whose words, without the number, mean nothing else."""
GONE = {
    errno.ENOENT: "do not move or delete it meanwhile",
    errno.ENOTDIR: "do not replace it meanwhile",
    errno.EISDIR: "move the folder away that stands in the place of one of its files",
}
"""The same of a folder that somebody else has taken away, or changed. Elsewhere these are mistakes of a program."""


def disk_fault(error: BaseException, folder: str = "") -> UserError | None:
    """What the file system refused, if that is what an exception or one that led to it comes from.

    Args:
      error: as it was caught. Libraries in C++ raise ValueErrors and RuntimeErrors with the system's words.
      folder: where the program writes, which should be there.
    """
    chain, seen = [error], set[int]()
    while chain:
        one = chain.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        number, named = _refusal(one)
        inside = bool(folder) and folder in named
        if advice := DISK.get(number) or (inside and GONE.get(number)):
            where = (folder if inside or not named else named) or "standard output or a file being written"
            return UserError(f"{where}: {os.strerror(number)}; {advice} and start the same command again")
        before = one.__cause__ if one.__suppress_context__ else one.__context__
        chain += [*getattr(one, "exceptions", ()), *([before] if before else [])]
    return None


def _refusal(error: BaseException) -> tuple[int, str]:
    """The system's number of what it refused and the path that is named, as far as an exception says them."""
    if isinstance(error, OSError) and error.errno:
        path = error.filename
        return error.errno, os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    text = str(error)
    # Tensorstore, which orbax writes with, has the number, array_record the words.
    if told := re.search(r"os_error_code='?(\d+)", text):
        number = int(told[1])
    else:
        number = next((n for n in SPOKEN if os.strerror(n) in text), 0)
    named = re.search(r"""(?<=["'\s])/[^\s"';:]+""", text) if number else None
    return number, named[0] if named else ""


@contextlib.contextmanager
def disk_faults(folder: str, witness: str = "") -> Iterator[None]:
    """Turns what the file system refuses inside, while the files of a folder are written, into a UserError.

    Args:
      folder: where they are.
      witness: a file that is there as long as the folder is. Without it, whatever is raised comes from that.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        gone = (
            FileNotFoundError(errno.ENOENT, "", witness) if witness and not os.path.exists(witness) else None
        )
        fault = disk_fault(gone or error, folder)
        if fault is None:
            raise
        raise fault from None


def program(main: Callable[[], object]) -> NoReturn:
    """Runs a whole program as `run_cli` does and ends this process with its status.

    Threads of libraries (orbax, tensorstore, grain, XLA) may still run then, and one that asks for Python's lock
    while the interpreter is taken apart crashes the process. So it is not taken apart: what is to be finished or
    stopped is so by contexts within `main`.
    """
    status: object = 0
    sys.unraisablehook = functools.partial(_interrupt_again, sys.unraisablehook)
    try:
        run_cli(main)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # Worker processes are ended and temporary folders deleted here.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


def _interrupt_again(show: Callable[[Any], object], lost: Any) -> None:
    """Lets a Ctrl-C come again that came in a callback, such as XLA's of the garbage collector, from which nothing
    can be raised; other exceptions there are shown."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(0.1, _thread.interrupt_main).start()
    else:
        show(lost)


def run_cli(main: Callable[[], object]) -> None:
    """Runs a program: a UserError becomes `error: ...` on stderr and exit status 1, a Note `note: ...`, and so
    does what `disk_fault` knows.

    Interruption by Ctrl-C exits with 130 and a reader of stdout that went away, such as `head`, with 141, as
    shells expect; any other exception is a defect of ours and keeps its traceback.
    """
    try:
        with warnings.catch_warnings():
            _show_notes_as_sentences()
            main()
            sys.stdout.flush()
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
        _forget_stdout()
        raise SystemExit(141) from None
    except Exception as error:
        fault = disk_fault(error)
        if fault is None:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _forget_stdout()
        print(f"error: {fault}", file=sys.stderr)
        raise SystemExit(1) from None


def _forget_stdout() -> None:
    """Sends what is still buffered nowhere, or Python would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
