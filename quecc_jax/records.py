"""JSON records that we write and read back: each appears whole, carries a checksum, and has a known form.

The checksum is the record's last entry, `crc32`, over the values alone: how a file is laid out does not matter, and
a record without it, as version 0.1 wrote them and as people write them, is checked by its form alone.
"""

import json
import sys
import zlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, is_typeddict

import msgspec

from quecc_jax.errors import UserError
from quecc_jax.json_text import decoded, parsed, reason
from quecc_jax.paths import AnyPath, as_path, is_pipe, write_text

T = TypeVar("T")
CRC32 = "crc32"
LARGEST = 1 << 29
"""Bytes of the largest record that is read; the rest of a file that is larger is not ours."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A whole number from 0 that fits into an int64."""
Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Neither NaN nor infinite, as JSON knows numbers."""
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=sys.float_info.max)]

HALF = r"is damaged (it holds half of a character, \ud800 to \udfff)"
"""JSON can write what UTF-8 cannot."""


class Damaged(UserError):
    """A file does not hold what was written, or not what it should."""


def sealed(record: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """A record with its checksum, as JSON holds it.

    Args:
      record: what is to be kept.
      of: what it belongs to, which the checksum covers too.
    """
    plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in record.items() if k != CRC32}))
    return {**plain, CRC32: _crc32(plain, of)}


def unsealed(record: object, name: str, advice: str, of: str = "") -> Any:
    """A record without its checksum, if it is one and has one.

    Args:
      record: as JSON gives it.
      name: of the file, for messages.
      advice: what to do about a damaged one.
      of: as in `sealed`.

    Raises:
      Damaged: it has another checksum.
    """
    if not isinstance(record, dict) or CRC32 not in record:
        return record
    found = {key: value for key, value in record.items() if key != CRC32}
    if record[CRC32] != _crc32(found, of):
        raise Damaged(
            f"{name} is damaged, or was changed since it was written: its values do not have its checksum; {advice}"
            f"{OWN_CHANGE}"
        )
    return found


OWN_CHANGE = f" (or, if the change is yours, delete its entry {CRC32!r})"


def _crc32(record: object, of: str) -> str:
    return f"{zlib.crc32((json.dumps(record, sort_keys=True) + of).encode()):08x}"


def write_record(
    path: AnyPath, record: Mapping[str, Any], indent: int | None = 1, durable: bool = True
) -> None:
    """Writes a record with its checksum, whole or not at all; `durable` as in `paths.replacing`."""
    write_text(path, json.dumps(sealed(record), indent=indent, ensure_ascii=False) + "\n", durable)


def read_record(path: AnyPath, form: type[T], advice: str) -> T:
    """What `write_record` has written.

    Args:
      path: here or in a bucket.
      form: a TypedDict, NamedTuple or other type that msgspec knows, which the record has to have.
      advice: what to do about a damaged one, as half a sentence.

    Raises:
      FileNotFoundError: it is missing.
      Damaged: it cannot be read, is no JSON, or has another checksum or form.
    """
    if is_pipe(path):
        raise Damaged(f"{path} is a pipe and no file; {advice}")
    try:
        with as_path(path).open("rb") as file:
            raw = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror or error}); {advice}") from None
    return of_form(json_value(raw, str(path), advice), form, str(path), advice)


def json_value(raw: bytes, name: str, advice: str) -> Any:
    """The value of a JSON file's bytes, whatever it is.

    Raises:
      Damaged: there are too many of them, or they are no JSON.
    """
    if len(raw) > LARGEST:
        raise Damaged(f"{name} is larger than {LARGEST >> 20} MB, which no such file is; {advice}")
    try:
        text = decoded(name, raw)
        value = parsed(text)
        if "\\ud" in text.lower():
            # In text that goes on to people and files; a pair of halves is a character.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UserError as error:
        raise Damaged(str(error)) from None
    except UnicodeEncodeError:
        raise Damaged(f"{name} {HALF}; {advice}") from None
    except ValueError as error:
        raise Damaged(f"{name} cannot be read as JSON ({reason(error)}); {advice}") from None
    except RecursionError:
        raise Damaged(f"{name} cannot be read as JSON (it is nested too deeply); {advice}") from None


def of_form(value: object, form: type[T], name: str, advice: str, of: str = "") -> T:
    """A record as JSON gives it, checked against its checksum (`of` as in `sealed`), if it has one, and its form.

    Raises:
      Damaged: it has another.
    """
    found = unsealed(value, name, advice, of)
    # msgspec passes over names that a TypedDict does not have.
    if is_typeddict(form) and isinstance(found, dict):
        for key in found.keys() - form.__annotations__.keys():
            raise Damaged(f"{name} holds {key!r}, which is no entry of such a file; {advice}")
    try:
        return msgspec.convert(found, form)
    except UnicodeEncodeError:
        raise Damaged(f"{name} {HALF}; {advice}") from None
    except (msgspec.ValidationError, OverflowError) as error:
        raise Damaged(f"{name} is damaged ({error}); {advice}") from None
