"""A command line is a config file and the settings it overrides."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import traceback
import typing
from pathlib import Path
from typing import Any, TypeVar

import tyro

from quecc_jax.config import RunConfig
from quecc_jax.config.io import from_dict, nearest, to_dict
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError

T = TypeVar("T")


def parse_run(argv: list[str], prog: str) -> RunConfig:
    """The run that `CONFIG.py --some.setting VALUE ...` describes.

    Args:
      argv: the arguments after the program's name; the first is the config file.
      prog: how the program was called, for the help text.

    Raises:
      UserError: a missing or broken config file, an unknown setting, or a value that does not fit.
      SystemExit: with status 0, after printing the help.
    """
    wants_help = any(a in ("-h", "--help") for a in argv)
    if not argv or (argv[0].startswith("-") and not wants_help):
        raise UserError(f"name a config file first, as in: {prog} configs/NAME.py --train.steps 100")
    if argv[0].startswith("-"):
        default, usage = RunConfig(), f"{prog} CONFIG.py"
    else:
        default, usage, argv = load_config_file(argv[0]), f"{prog} {argv[0]}", argv[1:]
    config = override(default, argv, usage)
    validate(config)
    return config


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
        beside = [p.name for p in file.parent.glob("*.py") if p.name != "__init__.py"]
        hint = nearest(file.name, sorted(beside)) if beside else "give the path of a Python file"
        raise UserError(f"config file {path} does not exist; {hint}")
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        ast.parse(file.read_text(), path)
        spec.loader.exec_module(module)
        made = getattr(module, function)(*arguments)
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"config file {path}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        if not hasattr(module, function) and isinstance(error, AttributeError):
            error = AttributeError(f"no {function}() function")
        raise UserError(f"config file {path}{_line(error, file)}: {type(error).__name__}: {error}") from None
    if not isinstance(made, kind):
        raise UserError(
            f"config file {path}: {function}() returned {type(made).__name__}, not a {kind.__name__}"
        )
    # Dataclasses do not check their fields' types; the strict reader does.
    try:
        return from_dict(kind, to_dict(made))
    except UserError as error:
        raise UserError(f"config file {path}: {error}") from None


def _line(error: Exception, file: Path) -> str:
    """`, line N` for the last line of `file` that an error passed through."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    return f", line {lines[-1]}" if lines else ""


def override(default: RunConfig, argv: list[str], usage: str) -> RunConfig:
    """`default` with the settings given as options replaced.

    Raises:
      UserError: an unknown option (with the nearest known one) or a value of another type.
      SystemExit: with status 0, after printing the help.
    """
    about = "Trains one run. CONFIG.py gives the settings; options override them."
    return parse_options(RunConfig, argv, usage, about, default)


def parse_options(kind: type[T], argv: list[str], prog: str, about: str, default: T | None = None) -> T:
    """A dataclass from options named after its fields; fields without a default are required.

    Raises:
      UserError: an unknown option (with the nearest known one), a missing one, or a value of another
        type.
      SystemExit: with status 0, after printing the help.
    """
    printed = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed):
            parsed, unknown = tyro.cli(
                kind, args=argv, prog=prog, description=about, return_unknown_args=True, **given
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        _refuse_unknown(kind, [a for a in argv if a.startswith("--")])
        if missing := _missing(kind, argv):
            raise UserError(f"{' and '.join(missing)} must be given; see --help") from None
        raise UserError(f"{_sentence(printed.getvalue())}; see --help") from None
    if unknown:
        _refuse_unknown(kind, [a for a in unknown if a.startswith("-")] or unknown)
    return parsed


def _refuse_unknown(kind: type, arguments: list[str]) -> None:
    known = _options(kind)
    for option in (argument.split("=")[0] for argument in arguments):
        if option.replace("_", "-") not in known and option != "--help":
            raise UserError(f"{option} is not an option; {nearest(option, known, 'see --help')}") from None


def _missing(kind: type, argv: list[str]) -> list[str]:
    """Required options that are not among the arguments."""
    given = {argument.split("=")[0].replace("_", "-") for argument in argv}
    required = (name for name in typing.get_type_hints(kind) if not hasattr(kind, name))
    return [option for option in map(_option, required) if option not in given]


def _option(field: str) -> str:
    """A field's option; an underscore at the end only keeps the name from being Python's own."""
    return f"--{field.rstrip('_').replace('_', '-')}"


def _options(kind: type, prefix: str = "--") -> list[str]:
    """The option names of a dataclass tree, as tyro spells them."""
    names: list[str] = []
    for field, hint in typing.get_type_hints(kind).items():
        name = prefix + _option(field).removeprefix("--")
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        names += _options(hint, f"{name}.") if nested else [name]
    return names


def _sentence(box: str) -> str:
    """The message of one of tyro's boxed errors, on one line: after its title, up to a rule or gap."""
    lines = [line.strip(" │╭╮╰╯|") for line in box.splitlines()]
    lines = ["" if set(line) <= set("-─") else line for line in lines]
    _title, *rest = itertools.dropwhile(lambda line: not line, lines)
    message = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, rest))
    return " ".join(message).rstrip(".")
