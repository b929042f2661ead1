"""The command that runs one cell, which a scheduler starts as a person would."""

from collections.abc import Sequence

from quecc_jax.errors import UserError

PREEMPTED = 143
"""Status with which it ends where it was told to stop, and would go on; a shell's for SIGTERM."""


def cell_command(program: Sequence[str], config: str, out: str, cell: str) -> list[str]:
    """The sweep's command for one cell.

    Args:
      program: how the sweep is called, as "quecc sweep".
      config: as it was named on the command line.
      out: directory of the grid.
      cell: name of the cell.
    """
    return [*program, config, "--out", out, "--only", cell]


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of an option that takes several.

    Raises:
      UserError: one of them is none.
    """
    found = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not (name and sign and value):
            raise UserError(f"{option} {one} is not NAME=VALUE, such as nvidia.com/gpu=8")
        found[name] = value
    return found
