"""Mutants that no test can see, since they do what the original does: by module's function and changed line."""

from typing import NamedTuple


class Equivalent(NamedTuple):
    """A mutant by its place and what stands there instead, both without the blanks in front."""

    function: str
    line: str
    mutated: str
    reason: str


EQUIVALENT: tuple[Equivalent, ...] = ()


def reason_of(function: str | None, diff: str) -> str | None:
    """Why the mutant of a diff, a unified one, is equivalent; None if it is not listed."""
    lines = diff.splitlines()
    gone = [line[1:].strip() for line in lines if line.startswith("-") and not line.startswith("---")]
    come = [line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++")]
    for one in EQUIVALENT:
        if (one.function, [one.line], [one.mutated]) == (function, gone, come):
            return one.reason
    return None
