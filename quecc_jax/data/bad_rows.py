"""Counts rows that cannot be learned from, by reason, and stops a run that meets too many."""

import collections
from collections.abc import Mapping
from typing import NamedTuple

from quecc_jax.config import DataConfig
from quecc_jax.errors import UserError

DROPPED = "dropped"
"""The reason of rows above data.max_length where `data.too_long` is `drop`: they are not bad."""
GRACE = 1000
"""Rows read count as no fewer, so that one bad row among the first is no large share."""


class LeftOut(NamedTuple):
    """One row that no batch holds."""

    id: int
    """Identity of the sample, see `Batch.ids`."""
    reason: str
    """A `Fault` or DROPPED."""
    message: str
    """A sentence with the file and the row."""


class Read(NamedTuple):
    """What came of the rows of one batch."""

    rows: int
    """How many there were."""
    truncated: tuple[int, ...]
    """Identities of those that lost the end of their text."""
    cut_questions: tuple[int, ...]
    """Identities of those whose question for the compressor lost its end."""
    left_out: tuple[LeftOut, ...]


class Tally:
    """Counts what came of the rows that one process has read.

    Args:
      data: gives the policy and the limit.
      rows: rows of all sources together.
    """

    def __init__(self, data: DataConfig, rows: int):
        self.data, self.rows = data, rows
        self.read = 0
        """Rows asked for, those of every epoch."""
        self.reasons: collections.Counter[str] = collections.Counter()
        """How many of them were left out, by reason."""
        self.left_out: dict[int, LeftOut] = {}
        """What was left out, by identity, in the order of finding it: once, however many epochs meet it."""
        self.truncated: dict[int, None] = {}
        """Identities of the rows whose text was cut, in the order of finding them."""
        self.cut_questions: dict[int, None] = {}
        """Identities of the rows whose question for the compressor was cut, in the order of finding them."""

    def add(self, read: Read) -> None:
        """Counts the rows of one batch.

        Raises:
          UserError: a row is bad and may not be, or too large a share of those read is.
        """
        bad = [one for one in read.left_out if one.reason != DROPPED]
        if bad and self.data.bad_rows == "error":
            raise UserError(bad[0].message)
        self.read += read.rows
        self.truncated |= dict.fromkeys(read.truncated)
        self.cut_questions |= dict.fromkeys(read.cut_questions)
        self.reasons.update(one.reason for one in read.left_out)
        for one in read.left_out:
            self.left_out.setdefault(one.id, one)
        total = self.reasons.total() - self.reasons[DROPPED]
        limit = self.data.max_bad_share
        if bad and total > limit * max(self.read, min(GRACE, self.rows)):
            raise UserError(
                f"{total} of the {self.read} rows read so far are bad "
                f"({describe(self.reasons)}), more than data.max_bad_share {limit} allows; "
                f"repair them or raise it, the last one is {bad[-1].message}"
            )


def describe(reasons: Mapping[str, float]) -> str:
    """Counts by reason in a few words, the most frequent first."""
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:.0f} {reason}" for reason, count in ranked if count)
