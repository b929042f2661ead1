"""Directories that appear whole or not at all."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quecc_jax.errors import UserError
from quecc_jax.paths import is_remote, place


@contextlib.contextmanager
def fresh_directory(directory: str | Path) -> Iterator[Path]:
    """Yields an empty directory beside `directory` that takes its name when the block succeeds.

    An existing `directory` is replaced only then; when the block raises, it is left as it was.
    """
    target = Path(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}"
    aside.mkdir()
    try:
        yield aside
        if target.exists():
            old = aside.with_suffix(".old")
            os.rename(target, old)
            os.rename(aside, target)
            shutil.rmtree(old)
        else:
            os.rename(aside, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file, or the list of values in a .jsonl file (one a line).

    Raises:
      UserError: the file is missing, not UTF-8 or not JSON; names the line where it stops being JSON.
    """
    path = place(path) if is_remote(path) else Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text at byte {error.start}; convert the file") from None
    if path.suffix != ".jsonl":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {error.lineno} is not JSON: {error.msg}; repair it") from None
    lines = text.split("\n")
    try:
        # One call for the whole file is several times faster than one a line.
        values = json.loads("[" + ",".join(line for line in lines if line.strip()) + "]")
    except json.JSONDecodeError:
        values = []
    if len(values) == sum(bool(line.strip()) for line in lines):
        return values
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line or "0")
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON: {error.msg}; repair it") from None
    raise UserError(f"{path} does not hold one JSON value a line; repair it")
