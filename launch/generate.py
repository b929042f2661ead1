"""Answers one question: `python -m launch.generate --checkpoint RUN --image a.png --question TEXT`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from launch.cli import parse_options
from quecc_jax.errors import UserError, run_cli


@dataclasses.dataclass(frozen=True)
class Options:
    """What to ask, and whom."""

    checkpoint: Path
    """Directory of a trained run."""
    question: str
    """What to ask. Pictures come first, in order, unless it says where with `<image>`."""
    image: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Picture that the question is about; repeat the option for several, leave it out for none."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""


def main() -> None:
    """Parses the command line and prints the answer."""
    options = parse_options(
        Options, sys.argv[1:], "python -m launch.generate",
        "Answers one question about pictures, or about none, by greedy decoding.",
    )  # fmt: skip
    if options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {options.max_new_tokens}; give at least 1")
    # Imported late, so that --help and mistakes in the command line answer at once.
    from quecc_jax.evaluate.predict import answer
    from quecc_jax.load import load_vlm

    config, params = load_vlm(options.checkpoint)
    print(answer(config, params, options.question, options.image, max_new_tokens=options.max_new_tokens))


if __name__ == "__main__":
    run_cli(main)
