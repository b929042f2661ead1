"""`python -m scaling fit` and `python -m scaling plan`; see `quecc_jax.commands.fit` and `.plan`."""

import sys
from collections.abc import Sequence

from quecc_jax.commands.cli import quecc


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the two commands; returns exit status 0."""
    return quecc(argv, "python -m scaling", ("fit", "plan"))


if __name__ == "__main__":
    sys.exit(main())
