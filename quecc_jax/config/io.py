"""Run configs to JSON and back: strict, typed, and written whole or not at all."""

import dataclasses
import difflib
import json
import math
import os
import types
import typing
import warnings
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

from quecc_jax.config import CompressorConfig, QueccConfig, RunConfig
from quecc_jax.config.compressors import config_class
from quecc_jax.config.renamed import with_new_names
from quecc_jax.errors import Note, UserError
from quecc_jax.paths import as_path, is_remote, write_text
from quecc_jax.records import json_value

T = TypeVar("T")

_NAMES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}


def to_dict(config: Any) -> dict[str, Any]:
    """A config tree as nested dicts and lists that JSON can hold."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def from_dict(kind: type[T], data: Any, where: str = "") -> T:
    """Builds a config dataclass from `to_dict`'s form; missing keys take their defaults.

    Args:
      kind: the dataclass to build.
      data: nested dicts, lists and scalars as JSON gives them.
      where: dotted name of this node, for messages.

    Raises:
      UserError: an unknown key (with the nearest known one) or a value of another type, by name.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or 'the config'} must be an object with named settings, not {data!r}")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            raise UserError(f"{_join(where, key)} is not a setting; {nearest(key, names)}")
    return kind(**{k: _typed(hints[k], v, _join(where, k)) for k, v in data.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` checked against a field's type and converted from JSON's form of it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if hint is CompressorConfig:
            hint = _compressor_class(value, where)
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is Literal:
        # True == 1, so types are compared as well as values.
        if not any(value == a and type(value) is type(a) for a in arguments):
            raise UserError(f"{where} is {value!r} but must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        inner = [a for a in arguments if a is not type(None)]
        listed = isinstance(value, list | tuple)
        fitting = [a for a in inner if (typing.get_origin(a) is tuple) == listed]
        return _typed((fitting or inner)[0], value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where} is {value!r} but must be a list")
        return tuple(_typed(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint or (hint is float and not math.isfinite(value)):
        raise UserError(f"{where} is {value!r} but must be {_NAMES[hint]}")
    return value


def _compressor_class(value: object, where: str) -> type[CompressorConfig]:
    """The settings that a compressor's `name` stands for; QueCC's without a name."""
    name = value.get("name", QueccConfig.name) if isinstance(value, dict) else QueccConfig.name
    try:
        return config_class(name)
    except UserError as error:
        raise UserError(f"{where}.name: {error}") from None


def nearest(name: str, known: list[str], otherwise: str = "") -> str:
    """The half-sentence that helps after an unknown name; `otherwise` in place of a long list."""
    bare = {one.lstrip("-"): one for one in known}
    close = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.65)
    return f"did you mean {bare[close[0]]}?" if close else otherwise or f"known: {', '.join(known)}"


def differences(old: RunConfig, new: RunConfig) -> Iterator[str]:
    """`name: old -> new` for every setting in which two runs differ."""
    was, now = (dict(_leaves(to_dict(c))) for c in (old, new))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            yield f"{key}: {was.get(key)} -> {now.get(key)}"


def _leaves(tree: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, _join(where, key))
        else:
            yield _join(where, key), value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Writes the config as JSON; a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(to_dict(config), indent=2) + "\n")


def load_config(path: str | os.PathLike[str]) -> RunConfig:
    """Reads what `save_config` wrote, also under the names of version 0.1, and warns about those.

    Raises:
      UserError: the file is missing, is not JSON, or holds unknown or mistyped settings.
    """
    try:
        data = json_value(as_path(path).read_bytes(), str(path), "restore or delete it")
    except FileNotFoundError:
        above = as_path(path).parent
        # A grid's directory, as `make demo` leaves it.
        runs = [] if is_remote(above) else sorted(above.glob("cells/*/*/config.json"))
        hint = f"it lies below a grid of runs; name one, such as {runs[-1].parent}" if runs else ""
        raise UserError(f"{path} does not exist; {hint or 'is this the directory of a run?'}") from None
    except NotADirectoryError:
        raise UserError(f"{as_path(path).parent} is a file; give the directory of a run") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); restore or delete it") from None
    if isinstance(data, dict) and {"architectures", "model_type"} & data.keys():
        raise UserError(
            f"{path} is of another project's model; make a run of it with python -m launch.convert import"
        )
    data, renamed = with_new_names(data)
    if renamed:
        warnings.warn(f"{path}: {', '.join(renamed)}", Note, stacklevel=2)
    try:
        return from_dict(RunConfig, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
