"""Writes directories that appear whole or not at all, and reads text and JSON files of other programs."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from quecc_jax.errors import UserError
from quecc_jax.json_text import MARK, decoded, parsed, reason
from quecc_jax.paths import AnyPath, as_path, is_remote, sync, sync_tree, write_text


@contextlib.contextmanager
def fresh_directory(directory: str | Path) -> Iterator[Path]:
    """Yields an empty directory beside `directory` that takes its name when the block succeeds.

    An existing `directory` is replaced only then; when the block raises, it is left as it was. What it holds is on
    the disk before it has its name.
    """
    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        yield aside
        sync_tree(aside)
        if target.exists():
            old = aside.with_suffix(".old")
            os.rename(target, old)
            os.rename(aside, target)
            shutil.rmtree(old)
        else:
            os.rename(aside, target)
        sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def size_and_time(path: AnyPath) -> tuple[int, float]:
    """Bytes of a file, here or in a bucket, and the time of its last change in seconds.

    Raises:
      OSError: it is missing.
    """
    # A bucket's has a type of its own.
    stat = cast(Any, as_path(path).stat())
    return (stat.length if is_remote(path) else stat.st_size), (
        stat.mtime if is_remote(path) else stat.st_mtime
    )


def read_text(path: str | Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
      UserError: the file is missing or not UTF-8.
    """
    path = as_path(path) if is_remote(path) else Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
    return decoded(str(path), raw)


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of a file with one JSON value a line, whatever it is called; raises as `read_json`."""
    return _values(path, read_text(path))


def read_json(path: str | Path) -> Any:
    """The value in a JSON file, or the list of values in a .jsonl file: one a line, or one JSON list.

    Raises:
      UserError: the file is missing, not UTF-8 or not JSON; names the line where it stops being JSON.
    """
    text = read_text(path)
    if Path(path).suffix == ".jsonl":
        return _values(path, text)
    if not text.strip():
        raise UserError(f"{path} is empty; give a JSON file")
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        more = " (one value a line? then name it .jsonl)" if error.msg == "Extra data" else ""
        what = reason(error) + more
        raise UserError(f"{path}, line {error.lineno} is not JSON: {what}; repair it") from None
    except (ValueError, RecursionError) as error:
        what = reason(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise UserError(f"{path} cannot be read: {what}; repair it") from None


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file for other programs, as transformers writes its own: UTF-8, indented by two.

    It appears whole or not at all.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _values(path: str | Path, text: str) -> list[Any]:
    """The values of a .jsonl file."""
    # Files that were joined have a byte order mark in front of some lines.
    lines = [line.removeprefix(MARK) for line in text.split("\n")]
    values, number = [], 0
    try:
        for number, line in enumerate(lines, start=1):  # noqa: B007 (the error names it)
            if line.strip():
                values.append(parsed(line))
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            with contextlib.suppress(ValueError, RecursionError):
                return list(parsed(text))
        what = reason(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise UserError(f"{path}, line {number} is not JSON: {what}; repair it") from None
    # A list of objects on one line is what the file holds; any other list is a value of it.
    listed = len(values) == 1 and isinstance(values[0], list) and values[0][:1]
    return values[0] if listed and isinstance(listed[0], dict) else values
