"""The one exception that reaches a person as a sentence instead of a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """What was wrong, where, and what to do about it, in one sentence."""


def run_cli(main: Callable[[], None]) -> None:
    """Runs a command line: a UserError becomes one line on stderr and exit status 1.

    Every `launch/` script ends in `run_cli(main)`. Interruption by Ctrl-C exits with 130, as
    shells expect; any other exception is a defect of ours and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
