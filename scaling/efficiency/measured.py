"""Shares of its peaks that a serving engine was measured to reach, part by part, by batch and length.

Between the measured batches and lengths the logarithm of the efficiency is linear in the logarithms of both: there
seconds are nearly powers of either. Outside of them the nearest measured one is taken, and `Measured.beyond` says so.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np

from quecc_jax.errors import UserError

Part = Literal["tower", "query", "compressor", "prefill", "decode"]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_Figure = Annotated[float, msgspec.Meta(ge=1, le=1e24)]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f\x7f$]+\Z")]
"""A line for people; with a dollar matplotlib would read a formula."""


class Chip(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Peaks that the ideal seconds are of: FLOP/s, bytes/s, and bytes of memory."""

    name: _Text
    flops: _Figure
    bandwidth: _Figure
    memory: _Figure
    source: _Text


class Model(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What was served, and the type of its numbers."""

    decoder: _Text
    compressor: _Text
    visual_tokens: Number
    dtype: _Text

    def __str__(self) -> str:
        return f"{self.decoder} behind {self.compressor} (V = {self.visual_tokens}) in {self.dtype}"


class Beyond(NamedTuple):
    """A batch, or lengths of prompts, that lie on one side of all that was measured."""

    what: Literal["batch", "length"]
    values: tuple[float, ...]
    """Ascending."""
    least: int
    """Measured, as `most`."""
    most: int

    @property
    def nearest(self) -> int:
        """Of the measured ones, whose efficiency is taken."""
        return self.least if self.values[0] < self.least else self.most


class Measured(NamedTuple):
    """Efficiencies of one engine, of each part by batch and then by length; both ascending."""

    name: str
    """Of the file, for messages."""
    chip: Chip
    model: Model
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    shares: dict[str, tuple[tuple[float, ...], ...]]

    def at(self, part: str, batch: int, length: Any) -> Any:
        """Share of the peaks that one part reaches, for prompts of a length or of an array of them.

        Raises:
          UserError: the part was not measured.
        """
        known = np.log(self.curve(part, batch))
        return np.exp(np.interp(np.log(np.maximum(length, 1)), np.log(self.lengths), known))

    def curve(self, part: str, batch: int) -> list[float]:
        """The same for each of the measured lengths.

        Raises:
          UserError: the part was not measured.
        """
        if part not in self.shares:
            raise UserError(
                f"{self.name} has no efficiency of the part {part!r}, which this plan needs; measure a model that "
                "has it, or give --efficiency a number."
            )
        at, known = math.log(batch), np.log(self.batches)
        columns = zip(*self.shares[part], strict=True)
        return [math.exp(np.interp(at, known, np.log(column))) for column in columns]

    def beyond(self, batch: int, lengths: Sequence[float]) -> list[Beyond]:
        """Where a plan for that batch and prompts of these lengths takes the nearest measured efficiency."""
        found = list[Beyond]()
        asked: tuple[tuple[Literal["batch", "length"], Sequence[float], tuple[int, ...]], ...] = (
            ("batch", [batch], self.batches),
            ("length", sorted(set(lengths)), self.lengths),
        )
        for what, values, known in asked:
            least, most = known[0], known[-1]
            sides = [v for v in values if v < least], [v for v in values if v > most]
            found += [Beyond(what, tuple(side), least, most) for side in sides if side]
        return found
