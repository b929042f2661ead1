"""`python -m scaling fit`, `plan`, `next` and `joint`; see the modules of these names in `quecc_jax.commands`."""

import sys
from collections.abc import Sequence

from quecc_jax.commands.cli import quecc


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the commands; returns exit status 0."""
    return quecc(argv, "python -m scaling", ("fit", "plan", "next", "joint"))


if __name__ == "__main__":
    sys.exit(main())
