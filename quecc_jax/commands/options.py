"""Options of commands: a dataclass from a command line, and every mistake in one sentence.

A field `config: RunSettings` takes a config file, which is named first and whose values are the defaults of
options for the whole tree: `CONFIG.py --train.steps 5`.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from quecc_jax.commands.checks import flag
from quecc_jax.commands.config_file import load_config_file
from quecc_jax.config import RunConfig
from quecc_jax.config.compressors import config_class, exchanged, names
from quecc_jax.config.io import nearest
from quecc_jax.config.renamed import RENAMED
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError

T = TypeVar("T")

RunSettings = Annotated[RunConfig, tyro.conf.arg(name="")]
"""The type of a field `config` that a config file and its overrides fill."""


def parse(options: type[T], argv: Sequence[str], prog: str) -> T:
    """Options from the arguments after a program's name; fields without a default are required.

    Args:
      options: a dataclass, or a union of some, which become subcommands of their names.
      prog: how the program was called, for the help.

    Raises:
      UserError: an unknown option (with the nearest known one), a missing one, a value of another type, a
        missing or broken config file, or settings that do not fit together.
      SystemExit: with status 0, after printing the help.
    """
    if not _takes_config(options):
        with refusals(option_names(options)):
            parsed = tyro.cli(options, args=argv, prog=prog)
        _refuse_buckets(parsed)
        return parsed
    config, file, argv = _named_config(argv, prog)
    default = with_config(options, with_chosen_compressor(config, argv))
    with refusals(option_names(options, default)):
        parsed = tyro.cli(
            options, args=argv, prog=f"{prog} {file}", default=default, config=(tyro.conf.AvoidSubcommands,)
        )
    _refuse_buckets(parsed)
    validate(parsed.config)  # type: ignore[attr-defined]
    return parsed


def _refuse_buckets(options: Any) -> None:
    """Refuses places in a bucket where a place of this machine is meant: `Path` would make gs:/BUCKET of them."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Path) and len(one.parts) > 1 and one.parts[0].endswith(":"):
                place = one.as_posix().replace(":/", "://", 1)
                raise UserError(
                    f"{flag(field.name)} {place} lies in a bucket, but takes a place of this machine; copy between "
                    "the two with gcloud storage cp"
                )


@dataclasses.dataclass(frozen=True)
class Run:
    """One run. CONFIG.py gives the settings; options override them."""

    config: RunSettings


def parse_run(argv: Sequence[str], prog: str) -> RunConfig:
    """The run that `CONFIG.py --some.setting VALUE ...` describes; raises as `parse`."""
    return parse(Run, argv, prog).config


def _takes_config(options: type) -> bool:
    hints = typing.get_type_hints(options, include_extras=True) if isinstance(options, type) else {}
    return hints.get("config") == RunSettings


def _named_config(argv: Sequence[str], prog: str) -> tuple[RunConfig, str, Sequence[str]]:
    """(the config that the first argument names, its name, the other arguments)"""
    if argv and not argv[0].startswith("-"):
        return load_config_file(argv[0]), argv[0], argv[1:]
    if {"-h", "--help"} & {*argv}:
        return RunConfig(), "CONFIG.py", argv
    raise UserError(f"name a config file first, as in: {prog} configs/NAME.py --train.steps 100")


def with_config(options: type[T], config: RunConfig) -> T:
    """Options with a config; the other fields have their defaults or stay required."""
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(options)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    return options(**required | {"config": config})


@dataclasses.dataclass(frozen=True)
class _Chosen:
    compressor: Annotated[str, tyro.conf.arg(name="model.compressor.name")] = ""


def with_chosen_compressor(config: RunConfig, argv: Sequence[str]) -> RunConfig:
    """The config with settings of the compressor that `--model.compressor.name` among the arguments names.

    Options are those of the default's class, and each compressor has a class of settings. Settings that both
    have keep their values.

    Raises:
      UserError: there is no such compressor, or it cannot take the place of the config's.
    """
    with refusals(()):
        chosen, _ = tyro.cli(_Chosen, args=argv, return_unknown_args=True, add_help=False)
    if not chosen.compressor:
        return config
    try:
        compressor = exchanged(config.model.compressor, chosen.compressor)
    except UserError as error:
        raise error.at("--model.compressor.name") from None
    return dataclasses.replace(config, model=dataclasses.replace(config.model, compressor=compressor))


def option_names(node: Any, default: object = None, prefix: str = "--") -> list[str]:
    """The names of all options of a dataclass tree, as tyro spells them, and of its subcommands."""
    if not dataclasses.is_dataclass(node):
        return [
            name for part in typing.get_args(node) for name in [part.__name__.lower(), *option_names(part)]
        ]
    names: list[str] = []
    hints = typing.get_type_hints(node, include_extras=True)
    for field in (f.name for f in dataclasses.fields(node)):
        annotated = hints[field]
        value = getattr(default, field, None)
        hint = typing.get_args(annotated)[0] if typing.get_origin(annotated) is Annotated else annotated
        nested = type(value) if dataclasses.is_dataclass(value) else hint
        name = prefix + field.rstrip("_").replace("_", "-")
        if dataclasses.is_dataclass(nested):
            names += option_names(nested, value, prefix if annotated == RunSettings else f"{name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for number, one in enumerate(value):
                names += option_names(type(one), one, f"{name}.{number}.")
        else:
            names.append(name)
    return names


def refusals(known: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Makes tyro raise its errors as UserErrors of one sentence, instead of printing them in boxes.

    tyro hands over its errors in a module that it calls private. A release without it has its own words.

    Args:
      known: names of options and commands, of which the nearest is suggested in place of an unknown one.
    """
    errors = getattr(tyro, "_errors", None)
    if errors is None:
        return contextlib.nullcontext()

    def refuse(event: Any) -> None:
        if sentence := _sentence(event, known):
            raise UserError(sentence)

    return errors.on_parse_error(refuse)


def _sentence(event: Any, known: Sequence[str]) -> str:
    """What was wrong, in one sentence; empty for a kind of error that this does not know."""
    kind = type(event).__name__
    unknown = event.tokens if kind == "UnrecognizedArgs" else getattr(event, "unrecognized_tokens", ())
    if unknown:
        return _unknown(next((token for token in unknown if token.startswith("-")), unknown[0]), known)
    if kind == "MissingArgs":
        names = [_name(one.arg) for one in event.missing_arguments]
        return f"{' and '.join(names)} must be given; see --help"
    if kind == "MissingMutexGroup":
        return f"one of {', '.join(_name(one.arg) for one in event.groups[0])} must be given; see --help"
    if kind == "MissingSubcommand":
        return f"name a command: {', '.join(event.subcommand_spec.parser_from_name)}"
    if kind == "MutexConflict":
        return f"{event.first_token} and {event.second_token} exclude each other; give one"
    if kind == "BadValue":
        return f"{_name(event.argument)} needs a value; see --help"
    if kind == "InvalidChoice":
        return f"{_name(event.argument)} is {event.value!r}; choose from {', '.join(event.choices)}"
    if kind == "InstantiationFailure":
        why = event.message.splitlines()[0].rstrip(".")
        return f"{_name(event.argument)} takes {event.argument.lowered.metavar}: {why}; see --help"
    return ""


def _name(argument: Any) -> str:
    """How a person gives an argument: its option, or what stands for a positional one in the help."""
    return argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[0]


def _unknown(token: str, known: Sequence[str]) -> str:
    """The sentence about an argument that nothing takes."""
    option = token.partition("=")[0]
    renamed = RENAMED.get(option.removeprefix("--").replace("-", "_"))
    if renamed is not None:
        return f"{option} is now {option.rpartition('.')[0]}.{renamed.name.replace('_', '-')}{renamed.how}"
    setting = option.removeprefix("--model.compressor.").replace("-", "_")
    if setting != option and any(setting in config_class(name).__dataclass_fields__ for name in names()):
        return f"{option} is not read by the compressor that is chosen; leave it out"
    commands = [name for name in known if not name.startswith("-")]
    if commands and not option.startswith("-"):
        return f"{option} is not a command; {nearest(option, commands)}"
    return f"{option} is not an option; {nearest(option, list(known), 'see --help')}"
