"""Config files: Python files with a function that returns a dataclass."""

import ast
import contextlib
import importlib.util
import os
import re
import sys
import traceback
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from quecc_jax.config import RunConfig
from quecc_jax.config.io import from_dict, nearest, to_dict
from quecc_jax.config.renamed import RENAMED
from quecc_jax.errors import UserError

T = TypeVar("T")

CONFIGS = "configs"
"""The folder of the repository that holds the config files which its documentation names."""


def load_config_file(path: str) -> RunConfig:
    """Runs a config file and returns what its `config()` returns.

    Args:
      path: the file, or `FILE.py:NAME` where `config` takes a name, such as a model's size.

    Raises:
      UserError: no such file, a mistake in it (with its line), or no `config() -> RunConfig`.
    """
    return load_file(path, "config", RunConfig)


def load_file(path: str, function: str, kind: type[T]) -> T:
    """Runs a Python file and returns what its function of that name returns, a dataclass.

    `FILE.py:NAME` calls the function with NAME.

    Raises:
      UserError: no such file, a mistake in it (with its line), or no such function with such a result.
    """
    path, colon, name = path.partition(".py:")
    path, arguments = (f"{path}.py", [name]) if colon else (path, [])
    file = Path(path)
    if not file.is_file():
        neighbours = [
            p.name for p in file.parent.glob("*.py") if f"def {function}(" in p.read_text("utf-8", "replace")
        ]
        if neighbours:
            hint = nearest(file.name, sorted(neighbours))
        elif file.parts[:1] == (CONFIGS,) and not Path(CONFIGS).is_dir():
            hint = (
                f"{CONFIGS}/ comes with the repository, not with the installed package: run this in a clone, or "
                f"give a Python file of yours whose {function}() returns a {kind.__name__}"
            )
        else:
            hint = "give the path of a Python file"
        raise UserError(f"config file {path} does not exist; {hint}")
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        ast.parse(file.read_text(), path)
        with _importable_here():
            spec.loader.exec_module(module)
            made = getattr(module, function)(*arguments)
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"config file {path}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        if not hasattr(module, function) and isinstance(error, AttributeError):
            others = [f"{name}()" for name in ("config", "grid") if hasattr(module, name)]
            has = f"it has {others[0]}, which other commands read" if others else "is it a config file?"
            raise UserError(f"config file {path} has no {function}() function; {has}") from None
        said = _renamed(error) or f"{type(error).__name__}: {error}"
        raise UserError(f"config file {path}{_line(error, file)}: {said}") from None
    if not isinstance(made, kind):
        raise UserError(
            f"config file {path}: {function}() returned {type(made).__name__}, not a {kind.__name__}"
        )
    # Dataclasses do not check their fields' types; the strict reader does.
    try:
        return from_dict(kind, to_dict(made))
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from None


def shipped(name: str) -> ModuleType:
    """The module of the file `configs/NAME.py` that is part of the repository, but not of an installed package.

    Raises:
      UserError: there is no such file where the program runs.
    """
    try:
        with _importable_here():
            return importlib.import_module(f"configs.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("configs", f"configs.{name}"):
            raise
        raise UserError(f"configs/{name}.py is not here; run this in a clone of the repository") from None


@contextlib.contextmanager
def _importable_here() -> Iterator[None]:
    """Modules of the current directory can be imported, such as configs.llava, as under `python -m`."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _line(error: Exception, file: Path) -> str:
    """`, line N` for the last line of `file` that an error passed through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    return f", line {lines[-1]}" if lines else ""


def _renamed(error: Exception) -> str:
    """What a setting is called now that a config file gives under its name of version 0.1; or nothing."""
    told = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if not isinstance(error, TypeError) or told is None:
        return ""
    for name, new in RENAMED.items():
        *groups, old = name.split(".")
        owner: type = RunConfig
        for group in groups:
            owner = typing.get_type_hints(owner)[group]
        if (owner.__name__, old) == told.groups():
            return f"{name} is now {'.'.join(groups)}.{new.name}{new.how}"
    return ""
