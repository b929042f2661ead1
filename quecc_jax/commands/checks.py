"""Checks of options before the work starts: options that would do nothing, files that could not be written."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quecc_jax.errors import UserError
from quecc_jax.paths import AnyPath, is_remote


def flag(name: str) -> str:
    """The option of a field of `Options`, as a person types it."""
    return f"--{name.strip('_').replace('_', '-')}"


def check_least(options: Any, least: Mapping[str, int]) -> None:
    """Raises UserError for the first field of `options` that is given and below its least value."""
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise UserError(f"{flag(name)} is {value}; give at least {lowest}")


def refuse_unread(options: Any, names: tuple[str, ...], why: str) -> None:
    """Refuses options that this call would not read.

    Args:
      options: a dataclass.
      names: its fields that nothing reads.
      why: what the sentence says after the option, as "goes with --web; add that or leave it out".

    Raises:
      UserError: one of them has another value than its default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    for name in names:
        if getattr(options, name) != defaults[name]:
            raise UserError(f"{flag(name)} {why}")


def share(option: str, text: str) -> tuple[int, int]:
    """(I, N) of an option's I/N.

    Raises:
      UserError: it does not read I/N with I below N.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"{option} {text} is not I/N with I from 0 to N - 1, such as 0/4")
    return int(match[1]), int(match[2])


def check_file(option: str, file: Path) -> None:
    """Checks that a file can be written; its folder is created when it is.

    Raises:
      UserError: it is a folder, or no folder is or could be where it shall lie.
    """
    if file.is_dir():
        raise UserError(f"{option} {file} is a folder; name a file")
    _check_above(option, file, file.absolute().parent)


def check_folder(option: str, folder: AnyPath) -> None:
    """Checks that files can be written to a folder, which may be missing; buckets are not asked.

    Raises:
      UserError: it is a file, or cannot be created or written.
    """
    if not is_remote(folder):
        _check_above(option, folder, Path(folder).absolute())


def _check_above(option: str, named: AnyPath, folder: Path) -> None:
    while not os.path.lexists(folder):
        folder = folder.parent
    reason = ""
    if not folder.is_dir():
        reason = f"{folder} is not a folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        reason = f"{folder} may not be written"
    if reason:
        raise UserError(f"{option} {os.fspath(named)} cannot be written ({reason}); choose another")
