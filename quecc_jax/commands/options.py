"""Options of commands: a dataclass from a command line, and every mistake in one sentence.

A field `config: RunSettings` takes a config file, which is named first and whose values are the defaults of
options for the whole tree: `CONFIG.py --train.steps 5`.
"""

import contextlib
import dataclasses
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from quecc_jax.commands.checks import flag
from quecc_jax.commands.config_file import load_config_file, load_stages
from quecc_jax.config import RunConfig
from quecc_jax.config.compressors import config_class, exchanged, names
from quecc_jax.config.io import nearest
from quecc_jax.config.renamed import RENAMED
from quecc_jax.config.validation import validate
from quecc_jax.errors import Note, UserError

T = TypeVar("T")

COUNTED = {"steps": "epochs", "batch_size": "conversations"}
"""Settings of `train` that are counted from the data where others are not 0."""

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
        with refusals(_names_to_suggest(options, argv)):
            parsed = tyro.cli(options, args=argv, prog=prog)
        _refuse_addresses(parsed)
        return parsed
    parsed = _overridden(options, *_named_config(options, argv, prog), prog)
    validate(parsed.config)  # type: ignore[attr-defined]
    return parsed


def _overridden(options: type[T], config: RunConfig, file: str, argv: Sequence[str], prog: str) -> T:
    """Options with the settings of a config, called `file`, but for those that are given among the arguments."""
    default = with_config(options, with_chosen_compressor(config, argv))
    with refusals(option_names(options, default)):
        parsed = tyro.cli(
            options,
            args=argv,
            prog=f"{prog} {file}",
            default=default,
            config=(tyro.conf.AvoidSubcommands,),
            registry=_compressors_by_name(),
        )
    _refuse_addresses(parsed)
    chosen = _uncounted(parsed.config, argv)  # type: ignore[attr-defined]
    return dataclasses.replace(parsed, config=chosen)  # type: ignore[type-var]


def parse_stages(options: type[T], argv: Sequence[str], prog: str) -> list[T]:
    """Options of each stage of the recipe that the first argument names. Settings behind it hold in all of them, but
    for two: `--out DIR` is their parent directory, where they start from each other as they did elsewhere, and
    `--init-from RUN` is what the first starts from.

    Raises:
      UserError: as `parse`.
    """
    file, given = argv[0], _names(argv)
    parsed: list[T] = []
    moved: dict[str, str] = {}
    for number, stage in enumerate(load_stages(file), start=1):
        one = _overridden(options, stage, f"{file}:{number}", argv[1:], prog)
        config: RunConfig = one.config  # type: ignore[attr-defined]
        config = dataclasses.replace(
            config,
            out=f"{config.out}/stage{stage.train.stage}" if "--out" in given else config.out,
            init_from=config.init_from if number == 1 else moved.get(stage.init_from, stage.init_from),
            tower_from=config.tower_from
            if "--tower-from" in given
            else moved.get(stage.tower_from, stage.tower_from),
        )
        validate(config)
        moved[stage.out] = config.out
        parsed.append(dataclasses.replace(one, config=config))  # type: ignore[type-var]
    return parsed


def _names(argv: Sequence[str]) -> set[str]:
    """The options among arguments, as tyro spells them."""
    return {token.partition("=")[0].replace("_", "-") for token in argv}


def _uncounted(config: RunConfig, argv: Sequence[str]) -> RunConfig:
    """The config without the epochs of its file where steps are given among the arguments alone, and without its
    conversations where rows are: they would count for nothing."""
    given = _names(argv)

    def told(name: str) -> bool:
        return f"--train.{name.replace('_', '-')}" in given

    idle: dict[str, Any] = {
        count: type(getattr(config.train, count))(0)
        for name, count in COUNTED.items()
        if told(name) and not told(count)
    }
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **idle))


def _names_to_suggest(options: Any, argv: Sequence[str]) -> list[str]:
    """`option_names`, of the chosen subcommand alone where there are some.

    Raises:
      UserError: what stands in the place of a subcommand is none.
    """
    commands = {part.__name__.lower(): part for part in typing.get_args(options)}
    if not commands or not argv or argv[0].startswith("-"):
        return option_names(options)
    if argv[0] not in commands:
        raise UserError(_unknown(argv[0], list(commands)))
    return option_names(commands[argv[0]])


def _compressors_by_name() -> tyro.constructors.ConstructorRegistry:
    """Makes the help list every compressor where the class of the chosen one's settings has its name alone.

    Other names never come to tyro: `with_chosen_compressor` has read them.
    """
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def one_of_all(
        info: tyro.constructors.PrimitiveTypeInfo,
    ) -> tyro.constructors.PrimitiveConstructorSpec[str] | None:
        if typing.get_origin(info.type) is not Literal:
            return None
        given = typing.get_args(info.type)
        if len(given) != 1 or given[0] not in names():
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{{{','.join(names())}}}",
            instance_from_str=lambda told: told[0],
            is_instance=lambda value: value in given,
            str_from_instance=lambda value: [value],
        )

    return registry


def _refuse_addresses(options: Any) -> None:
    """Refuses places in a bucket and on the web where a place of this machine is meant: `Path` would make gs:/BUCKET
    of them."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if not (isinstance(one, Path) and len(one.parts) > 1 and one.parts[0].endswith(":")):
                continue
            place = one.as_posix().replace(":/", "://", 1)
            if one.parts[0] == "gs:":
                raise UserError(
                    f"{flag(field.name)} {place} lies in a bucket, but takes a place of this machine; copy between "
                    "the two with gcloud storage cp"
                )
            raise UserError(
                f"{flag(field.name)} {place} is an address, but takes a place of this machine; download it and give "
                "its path"
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


def _named_config(options: type, argv: Sequence[str], prog: str) -> tuple[RunConfig, str, Sequence[str]]:
    """(the config that the first argument names, its name, the other arguments)"""
    asks = bool({"-h", "--help"} & {*argv})
    if argv and not argv[0].startswith("-"):
        try:
            return load_config_file(argv[0]), argv[0], argv[1:]
        except UserError as error:
            # What the file lacks may take an hour to make; a slip of the pen is told before.
            _refuse_unknown(options, argv[1:])
            if not asks:
                raise
            warnings.warn(Note(f"{error}; these are the defaults of every run"), stacklevel=2)
            return RunConfig(), argv[0], argv[1:]
    if asks:
        return RunConfig(), "CONFIG.py", argv
    raise UserError(f"name a config file first, as in: {prog} configs/NAME.py --train.steps 100")


def _refuse_unknown(options: type, argv: Sequence[str]) -> None:
    """Refuses names that are options of no config, where the config that was named cannot be read.

    Which sources and which compressor it has is not known, so none of their settings is refused; nor is a value
    that looks like an option.
    """
    default: object = with_config(options, with_chosen_compressor(RunConfig(), argv))
    known = [*option_names(options, default), "--help"]
    for before, token in zip(("", *argv), argv, strict=False):
        name = token.partition("=")[0]
        option = "--" + name[2:].removeprefix("no-").replace("_", "-")
        free = ("--data.sources.", "--model.compressor.")
        follows = before.startswith("--") and "=" not in before
        if not token.startswith("--") or option in known or option.startswith(free):
            continue
        if not follows or nearest(option, known, "none") != "none":
            raise UserError(_unknown(token, known))


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
        # An option that may be left out has None too, which nobody can give.
        choices = [choice for choice in event.choices if choice != "None"]
        return f"{_name(event.argument)} is {event.value!r}; choose from {', '.join(choices)}"
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
