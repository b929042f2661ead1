"""The paper's table 1."""

from pathlib import Path
from typing import TypedDict

from quecc_jax.records import Finite, read_record

_FILE = Path(__file__).with_name("table1.json")


class Row(TypedDict):
    """A method at a number of visual tokens."""

    method: str
    visual_tokens: int
    scores: dict[str, Finite]
    """By column; not every method has all."""


class Published(TypedDict):
    """The table, and where it is from."""

    source: str
    columns: list[str]
    rows: list[Row]


def published() -> Published:
    """The table as the package holds it."""
    return read_record(_FILE, Published, "install the package again")
