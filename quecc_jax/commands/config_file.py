"""Config files: Python files with a function that returns a dataclass, or the stages of a recipe."""

import ast
import contextlib
import dataclasses
import importlib.util
import os
import re
import sys
import traceback
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from quecc_jax.config import RunConfig
from quecc_jax.config.io import from_dict, nearest, to_dict
from quecc_jax.config.renamed import RENAMED
from quecc_jax.errors import UserError

T = TypeVar("T")

CONFIGS = "configs"
"""The folder of the repository that holds the config files which its documentation names."""


STAGES = re.compile(r"^def stages\(", re.MULTILINE)


def load_config_file(path: str) -> RunConfig:
    """Runs a config file and returns what its `config()` returns, or one stage of a recipe.

    Args:
      path: the file, or `FILE.py:NAME` where `config` takes a name, such as a model's size; of a recipe `FILE.py:N` or
        `FILE.py:NAME:N` for its stage N, counted from 1.

    Raises:
      UserError: no such file, a mistake in it (with its line), no `config() -> RunConfig`, or no such stage.
    """
    if not is_recipe(path):
        return load_file(path, "config", RunConfig)
    file, number = _stage(path)
    stages = load_stages(file)
    if not 1 <= number <= len(stages):
        raise UserError(
            f"config file {path} has {len(stages)} stages and this takes one of them; name it, as in {file}:1"
        )
    return stages[number - 1]


def is_recipe(path: str) -> bool:
    """Whether a config file, with or without names behind it, has `stages()` in place of `config()`."""
    file = Path(_parts(path)[0])
    return file.is_file() and STAGES.search(file.read_text("utf-8", "replace")) is not None


def names_stage(path: str) -> bool:
    """Whether one stage of a recipe is named."""
    return _stage(path)[1] > 0


def _stage(path: str) -> tuple[str, int]:
    """(a recipe without the number of a stage, that number or 0)"""
    before, _, last = path.rpartition(":")
    return (before, int(last)) if before and last.isdecimal() else (path, 0)


def load_stages(path: str) -> tuple[RunConfig, ...]:
    """Runs a recipe and returns its stages, each of which starts from the one before unless it says from what.

    Args:
      path: the file, or `FILE.py:NAME` where `stages` takes a name.

    Raises:
      UserError: as `load_config_file`, or two stages that share a directory or a number.
    """
    made = _made(path, "stages")
    if not isinstance(made, list | tuple) or not made or not all(isinstance(one, RunConfig) for one in made):
        raise UserError(f"config file {path}: stages() did not return a list of RunConfig")
    stages: list[RunConfig] = []
    for one in made:
        before = stages[-1].out if stages else ""
        stages.append(_checked(path, RunConfig, dataclasses.replace(one, init_from=one.init_from or before)))
    for field, values in (
        ("out", [one.out for one in stages]),
        ("train.stage", [one.train.stage for one in stages]),
    ):
        if len({*values}) < len(values):
            raise UserError(f"config file {path}: its stages repeat {field} {', '.join(map(str, values))}")
    return tuple(stages)


def load_file(path: str, function: str, kind: type[T]) -> T:
    """Runs a Python file and returns what its function of that name returns, a dataclass.

    `FILE.py:NAME` calls the function with NAME.

    Raises:
      UserError: no such file, a mistake in it (with its line), or no such function with such a result.
    """
    made = _made(path, function)
    path = _parts(path)[0]
    if not isinstance(made, kind):
        raise UserError(
            f"config file {path}: {function}() returned {type(made).__name__}, not a {kind.__name__}"
        )
    return _checked(path, kind, made)


def _checked(path: str, kind: type[T], made: T) -> T:
    """What a file made, with its fields' types, which dataclasses do not check."""
    try:
        return from_dict(kind, to_dict(made))
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from None


def _parts(path: str) -> tuple[str, list[str]]:
    """(the file, the arguments of its function)"""
    path, colon, name = path.partition(".py:")
    return (f"{path}.py", [name]) if colon else (path, [])


def _made(path: str, function: str) -> Any:
    """Runs a Python file and returns what its function of that name returns."""
    path, arguments = _parts(path)
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
                f"give a Python file of yours that has {function}()"
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
            return getattr(module, function)(*arguments)
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"config file {path}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        if not hasattr(module, function) and isinstance(error, AttributeError):
            others = [f"{name}()" for name in ("config", "grid", "stages") if hasattr(module, name)]
            has = f"it has {others[0]}, which other commands read" if others else "is it a config file?"
            raise UserError(f"config file {path} has no {function}() function; {has}") from None
        said = _renamed(error) or f"{type(error).__name__}: {error}"
        raise UserError(f"config file {path}{_line(error, file)}: {said}") from None


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
