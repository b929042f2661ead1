"""The file of efficiencies that `benchmarks.serve` writes and `scaling plan --efficiency` reads."""

import itertools
from collections import Counter
from typing import Annotated, Literal

import msgspec

from quecc_jax.errors import UserError
from quecc_jax.paths import AnyPath
from quecc_jax.records import read_record
from scaling.efficiency.measured import Chip, Measured, Model, Number, Part

_ADVICE = "give a file of `benchmarks.serve --parts stages`"
_RATIO = 0.01
"""How far an efficiency may lie from its two times, as a share: people round."""
_MOST = 2.0
"""Largest efficiency. A little above 1 is possible, where the peaks were measured with arrays that suit the chip less
well than the engine's do; more is another unit, or another chip."""
_Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    """One part of one batch; length is that of the prompt, visual tokens included, and decode is of one token."""

    part: Part
    batch: Number
    length: Number
    seconds: _Seconds
    ideal_seconds: _Seconds
    efficiency: Annotated[float, msgspec.Meta(gt=0, le=_MOST)]


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    format: Literal["quecc_jax serving efficiency 1"]
    chip: Chip
    model: Model
    rows: Annotated[list[_Row], msgspec.Meta(min_length=1)]


def read_efficiency(path: AnyPath) -> Measured:
    """The efficiencies of a file of the serving benchmark.

    Raises:
      UserError: it is missing, damaged, or its rows are not one for each part, batch and length.
    """
    try:
        record = read_record(path, _Record, _ADVICE)
    except FileNotFoundError:
        raise UserError(
            f"--efficiency {path} is no file and no number; {_ADVICE}, or a share such as 0.4."
        ) from None
    rows, name = record.rows, str(path)
    for at, count in Counter((row.part, row.batch, row.length) for row in rows).items():
        if count > 1:
            raise UserError(f"{name} has {_place(*at)} {count} times; {_ADVICE}.")
    for row in rows:
        if abs(row.ideal_seconds / row.seconds - row.efficiency) > _RATIO * row.efficiency:
            raise UserError(
                f"{name} has for {_place(row.part, row.batch, row.length)} an efficiency of {row.efficiency:g}, "
                f"which is not its ideal_seconds over its seconds; {_ADVICE}."
            )
    found: dict[tuple[str, int, int], float] = {
        (row.part, row.batch, row.length): row.efficiency for row in rows
    }
    parts: list[str] = sorted({row.part for row in rows})
    batches, lengths = sorted({row.batch for row in rows}), sorted({row.length for row in rows})
    for each in itertools.product(parts, batches, lengths):
        if each not in found:
            raise UserError(
                f"{name} lacks {_place(*each)}: each part needs every batch and every length; {_ADVICE}."
            )
    shares = {
        part: tuple(tuple(found[part, batch, length] for length in lengths) for batch in batches)
        for part in parts
    }
    return Measured(name, record.chip, record.model, tuple(batches), tuple(lengths), shares)


def _place(part: str, batch: int, length: int) -> str:
    return f"{part} at batch {batch} and length {length}"
