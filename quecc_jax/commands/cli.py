"""The commands, and how they are called: `quecc COMMAND`, `python -m launch.COMMAND`, `python -m scaling COMMAND`.

A command is a module of this package with

    Options                 a frozen dataclass, or a union of some, which become subcommands
    run(options) -> None    does it; heavy packages are imported here, so that --help answers at once

The docstring of `Options` and those of its fields are the help. See `options` for how they are parsed.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import tyro

from quecc_jax.commands.config_file import is_recipe, names_stage
from quecc_jax.commands.options import parse, parse_stages, refusals
from quecc_jax.errors import UserError, program, run_cli

COMMANDS = {
    "train": "train one run",
    "generate": "answer one question",
    "chat": "chat about images, in the terminal or in the browser",
    "serve": "answer over HTTP as OpenAI's API does, with limits and metrics",
    "evaluate": "score a run on a data set or on benchmarks",
    "compare": "compare models on the questions that all have answered",
    "convert": "import weights into a run, or export a run's weights",
    "inspect-data": "show what training will read",
    "prepare-data": "write a data set as shards for pods",
    "compile-pod": "compile a training step for TPUs that are not here: does it fit, how long does it take",
    "sweep": "train and test a grid of (LLM, V, seed)",
    "compare-compressors": "train a small model with every compressor",
    "demo": "train a grid of small models and fit the scaling law",
    "report": "rewrite the report of a finished grid",
    "reproduce": "train and score a row of the paper's table 1, step by step",
    "fit": "fit the scaling law to a file of scores",
    "plan": "choose LLM size and visual tokens for a budget",
    "next": "propose the cells of a grid to train next",
    "joint": "fit one law to several compressors, and ask whether it depends on them",
}
"""Every command and what it does; its module has the same name with underscores."""
OF_RECIPES = ("train",)
"""Those that take all stages of a recipe, one after another: their modules have `run_stages` beside `run`."""


def quecc(argv: Sequence[str] | None = None, prog: str = "quecc", names: Sequence[str] = (*COMMANDS,)) -> int:
    """The program `quecc`, or one of another name with some of its commands; returns exit status 0.

    Args:
      argv: the arguments after the program's name; None for the process's own, which ends with this program.

    Raises:
      SystemExit: with status 1 after a mistake, as `run_cli` says, and with 0 after the help.
    """
    given = list(sys.argv[1:] if argv is None else argv)

    def choose_and_execute() -> None:
        if given[:1] == ["scaling"]:
            raise UserError(
                "scaling is not a command; fit fits the law and plan chooses for a budget: "
                f"{prog} fit --help, {prog} plan --help"
            )
        # Only the name is parsed here: a command's module is imported once it is chosen.
        app = tyro.extras.SubcommandApp()
        for name in names:
            app.command(name=name, help=COMMANDS[name])(_constant(name))
        with refusals(names):
            command = app.cli(prog=prog, args=given[:1])
        execute(command, given[1:], f"{prog} {command}")

    if argv is None:
        program(choose_and_execute)
    run_cli(choose_and_execute)
    return 0


def _constant(name: str) -> Callable[[], str]:
    return lambda: name


def launch(command: str) -> NoReturn:
    """The program `python -m launch.COMMAND`; ends this process with the status that `run_cli` says."""
    prog = f"python -m launch.{command.replace('-', '_')}"
    program(lambda: execute(command, sys.argv[1:], prog))


def execute(command: str, argv: Sequence[str], prog: str = "quecc") -> None:
    """Parses a command's options and runs it.

    Args:
      command: one of `COMMANDS`.
      argv: the arguments after its name.
      prog: how it was called, for the help.

    Raises:
      UserError: a mistake in the options, or what the command itself raises.
      SystemExit: with status 0, after printing the help.
    """
    module = importlib.import_module(f"quecc_jax.commands.{command.replace('-', '_')}")
    if command in OF_RECIPES and argv and is_recipe(argv[0]) and not names_stage(argv[0]):
        module.run_stages(parse_stages(module.Options, argv, prog))
    else:
        module.run(parse(module.Options, argv, prog))
