"""JSON as other programs write it, with byte order marks; and what is no JSON, said in a sentence."""

import collections
import json
import re
from typing import Any

from quecc_jax.errors import UserError

JsonObject = dict[str, Any]
"""A JSON object of another program, such as a config.json, whose values are checked where they are used."""

MARK = "\ufeff"
"""The byte order mark, which Windows puts in front of UTF-8 text, and `cat` between two such texts."""

_OTHERS = (
    (b"\x1f\x8b", "is compressed by gzip; unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it"),
    (b"BZh", "is compressed by bzip2; unpack it"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it"),
    (b"PK\x03\x04", "is a ZIP archive; unpack it"),
    (b"PAR1", "is a Parquet file; write it as JSON, or make tfds data of it"),
    (b"\xff\xfe", "is UTF-16 or UTF-32 text; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as UTF-8"),
    (b"\0", "is no UTF-8 text, for it begins with a NUL byte; save it as UTF-8"),
)
_COMMA = re.compile(r",[ \t\r\n]*$")


def begin(name: str, raw: bytes) -> int:
    """Where the text of a UTF-8 file begins, given its first bytes: behind a byte order mark.

    Raises:
      UserError: the file is compressed, or text in another encoding.
    """
    for magic, what in _OTHERS:
        if raw.startswith(magic):
            raise UserError(f"{name} {what}")
    if raw[1:2] == b"\0":
        raise UserError(f"{name} is UTF-16 text; save it as UTF-8")
    mark = MARK.encode()
    return len(mark) if raw.startswith(mark) else 0


def decoded(name: str, raw: bytes) -> str:
    """The text of a file.

    Raises:
      UserError: as `begin`, or it is not UTF-8.
    """
    start = begin(name, raw)
    try:
        return raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text at byte {start + error.start}; convert the file") from None


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
      json.JSONDecodeError: it is no JSON.
      ValueError: an object holds a name twice, or a number has more digits than Python reads.
      RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = collections.Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object holds {twice!r} twice")
    return made


def reason(error: ValueError) -> str:
    """What is wrong with a text that `parsed` or Python's parser refused, in a few words."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error).partition(";")[0]
    before, after = error.doc[: error.pos], error.doc[error.pos : error.pos + 1]
    if after and after in "]}" and _COMMA.search(before):
        return "a comma stands in front of the closing bracket"
    return error.msg
