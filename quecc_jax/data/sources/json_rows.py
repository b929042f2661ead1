"""LLaVA files row by row: the file stays on disk, memory holds where each row begins and ends.

665,298 rows as Python objects are gigabytes in every process that reads them; as two positions each
they are 11 MB, and the pages of the file that are read lie in memory once for all processes.
"""

import codecs
import json
import mmap
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from quecc_jax.data.references import Row
from quecc_jax.errors import BadRow, UserError
from quecc_jax.json_text import MARK, begin, parsed, reason
from quecc_jax.paths import AnyPath, as_path, cached, is_remote

CHUNK = 8 << 20
"""Bytes that are read at once to find the rows."""
FIRST = 8 << 20
"""Bytes among which a file's first line must end for the file to be told apart by it."""
BLOCK = 1 << 16
"""Bytes between two positions whose line is remembered, once a line has been asked for."""
MAX_ROW = 64 << 20
"""Bytes of the largest row; one that is not over by then is taken for a damaged file."""

_BLANK = re.compile(r"[ \t\r\n]*")


class RowFile(Sequence[Row]):
    """The values of a JSON list, or of a file with one a line, each parsed when asked for.

    How a file begins decides which of the two it is, before its name does. A file in a bucket is first
    copied to this machine. Pickles as path and positions, so that worker processes read it themselves.

    Raises:
      UserError: the file is missing, is no list, or its list is damaged; names the line.
      BadRow: when it is asked for, of a damaged line of a .jsonl file and of a row that is not UTF-8;
        the caller adds `where` it stands.
    """

    def __init__(self, path: AnyPath):
        self.path = str(path)
        self._breaks: np.ndarray | None = None
        try:
            self._file = str(cached(path)) if is_remote(path) else self.path
            size = Path(self._file).stat().st_size
            self._bytes = self._map()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{self.path} cannot be read ({reason}); check the path") from None
        self._start = begin(self.path, self._bytes[:8]) if size else 0
        self._lines = self._one_a_line(as_path(path).suffix == ".jsonl")
        spans = () if not size else self._line_spans() if self._lines else self._list_spans()
        self._spans = np.fromiter(spans, np.dtype((np.int64, 2)))

    def _map(self) -> mmap.mmap | bytes:
        with open(self._file, "rb") as file:
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                return b""  # An empty file cannot be mapped.

    def _one_a_line(self, named_so: bool) -> bool:
        """Whether each line is a row, as in .jsonl files and in others that look like them."""
        head = self._bytes[self._start : self._start + FIRST].lstrip()
        first, _, rest = head.partition(b"\n")
        opens, more = first[:1], rest.lstrip()[:1]
        if named_so and opens == b"[":
            # Lines of lists are no rows, but somebody's values; a list of objects is a list of rows.
            return _whole(first) and (bool(more) or first[1:].lstrip()[:1] != b"{")
        return named_so or (opens == more == b"{" and _whole(first))

    def _line_spans(self) -> Iterator[tuple[int, int]]:
        start, size = self._start, len(self._bytes)
        mark = MARK.encode()
        while start < size:
            end = self._bytes.find(b"\n", start)
            end = size if end < 0 else end
            # Files that were joined have a byte order mark in front of some lines.
            start += len(mark) if self._bytes[start : start + len(mark)] == mark else 0
            if self._bytes[start : min(end, start + 80)].strip() or self._bytes[start:end].strip():
                yield start, end
            start = end + 1

    def _list_spans(self) -> Iterator[tuple[int, int]]:
        text = _Window(self)
        if text.next() != "[":
            raise UserError(f"{self.path} is not a list of rows; give a LLaVA-format .json or .jsonl file")
        text.skip()
        ended = text.next() == "]"
        if ended:
            text.skip()
        while not ended:
            yield text.value()
            mark = text.next()
            if mark not in (",", "]"):
                raise text.damaged("Expecting ',' delimiter")
            text.skip()
            ended = mark == "]"
        if text.next():
            raise text.damaged("Extra data")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._bytes)

    @property
    def stamp(self) -> int:
        """The CRC-32 of the whole file."""
        return zlib.crc32(self._bytes)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, row: int) -> Row:  # type: ignore[override]
        start, end = self._spans[row].tolist()
        try:
            return parsed(self._bytes[start:end].decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRow(
                "text", f"it is not UTF-8 text at byte {start + error.start} of the file; convert it"
            ) from None
        except ValueError as error:
            raise BadRow("not a row", f"it is not JSON: {reason(error)}; repair it") from None
        except RecursionError:
            raise BadRow("not a row", "it is nested too deeply; repair it") from None

    def where(self, row: int) -> str:
        """The row's file, the line it begins on and, but in a .jsonl file, its number, for messages."""
        line = f"line {self.line(int(self._spans[row][0]))}"
        return f"{self.path}, {line}" if self._lines else f"{self.path}, row {row + 1} ({line})"

    def line(self, position: int) -> int:
        """The line that a byte stands in, from 1."""
        if self._breaks is None:
            starts = range(0, len(self._bytes), BLOCK)
            counts = [self._bytes[start : start + BLOCK].count(b"\n") for start in starts]
            self._breaks = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        block = position // BLOCK
        return 1 + int(self._breaks[block]) + self._bytes[block * BLOCK : position].count(b"\n")

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_bytes"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._bytes = self._map()


def _whole(line: bytes) -> bool:
    """Whether a line is a JSON value of its own, or one that is nested too deeply to tell."""
    try:
        parsed(line.decode("utf-8"))
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


class _Window:
    """A moving part of a file as text, read forward value by value."""

    def __init__(self, rows: RowFile):
        self._rows, self._source = rows, rows._bytes
        # Bytes that are not UTF-8 must not move the positions of the rows behind them.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0
        self._position = self._read = rows._start

    def _more(self) -> bool:
        if self._read >= len(self._source):
            return False
        chunk = self._source[self._read : self._read + CHUNK]
        self._read += len(chunk)
        self._text = self._text[self._at :] + self._decode(chunk, self._read >= len(self._source))
        self._at = 0
        return True

    def _to(self, end: int) -> None:
        self._position += len(self._text[self._at : end].encode("utf-8", "surrogateescape"))
        self._at = end

    def next(self) -> str:
        """The next character that is not blank, without passing it; empty at the end."""
        while True:
            end = _BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._to(end)
            if end < len(self._text):
                return self._text[end]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Passes that character."""
        self._to(self._at + 1)

    def value(self) -> tuple[int, int]:
        """Passes the next value; returns the positions of its first byte and of the one behind it."""
        self.next()
        start = self._position
        while True:
            try:
                _, end = self._parse(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > MAX_ROW or not self._more():
                    self._to(min(error.pos, len(self._text)))
                    raise self.damaged(reason(error)) from None
                continue
            except RecursionError:
                raise self.damaged("nested too deeply") from None
            # A number could go on behind the window: what ends in ".", "e" or "e+" there is parsed short.
            if end + 2 < len(self._text) or not self._more():
                self._to(end)
                return start, self._position

    def damaged(self, what: str) -> UserError:
        """The error that the file is no JSON here."""
        return UserError(
            f"{self._rows.path}, line {self._rows.line(self._position)} is not JSON: {what}; repair it"
        )
