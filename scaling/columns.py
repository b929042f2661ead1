"""Scores in columns, as spreadsheets write them.

Wide: a column of LLM sizes, and one column for each number of visual tokens.

    params_b,1,16,36
    0.5,0.31,0.38,0.40

Tidy: one score a line, with columns `params_b`, `visual_tokens` and `score`, and optionally `stderr`, `task`
and `seed`. `error`, which is 1 - score, may stand for `score`. Columns are separated by commas, tabs or
semicolons. Nothing is guessed: what can be read in two ways is refused.
"""

import collections
import csv
import math
import re
from collections.abc import Mapping, Sequence

from quecc_jax.errors import UserError
from scaling.limits import SCORES
from scaling.table import LARGEST_B, Cell

_NAMES = {
    "params_b": "params_b",
    "params": "params",
    "parameters": "params",
    "n": "params",
    "size": "params",
    "llm": "params",
    "visual_tokens": "visual_tokens",
    "v": "visual_tokens",
    "score": "score",
    "accuracy": "score",
    "error": "error",
    "stderr": "stderr",
    "standard_error": "stderr",
    "task": "task",
    "benchmark": "task",
    "seed": "seed",
}
_MISSING = {"", "na", "n/a", "null", "none", "-", "–", "—"}
"""How a cell says that there is no score. NaN is none of them: it is what a score that went wrong looks like."""
_UNITS = {"k": 1e-6, "m": 1e-3, "b": 1.0, "t": 1e3}
_SIZE = re.compile(r"([0-9.]+(?:e[+-]?\d+)?)\s*([kmbt]?)", re.I)
_COUNT = re.compile(r"(?:v|visual_tokens)?\s*[=_ ]?\s*(\d+(?:\.0*)?)", re.I)
_PARAMETERS_FROM = 1e6
"""A plain number of at least so much counts parameters."""


Lines = Sequence[tuple[int, Mapping[str, str]]]
"""Numbers of lines, and their cells by the header's names."""
Record = Mapping[str, tuple[str, str]]
"""What a file says of one score, by the names that _NAMES gives: its own name of the column, and the text."""


def parse(text: str) -> tuple[list[Cell], bool]:
    """The scores of a file's text, and whether its cells said "%".

    Raises:
      UserError: names the line that cannot be read, or can be in two ways.
    """
    header, lines = _lines(text)
    names = [_NAMES.get(name.strip().lower().replace(" ", "_"), "") for name in header]
    scores = len(lines) * (1 if "visual_tokens" in names else len(header) - 1)
    if scores > SCORES:
        raise UserError(
            f"It has {scores:,} scores, and a fit takes at most {SCORES:,} of all tasks and seeds together; average "
            "over seeds or tasks first, or leave some out."
        )
    records = (_tidy if "visual_tokens" in names else _wide)(header, names, lines)
    if not lines:
        raise UserError("It has no rows below its header; write scores there.")
    if not records:
        raise UserError("It has no column of scores; write one for each number of visual tokens.")
    signs = set[bool]()
    cells = [_cell(number, record, signs) for number, record in records]
    if records and "error" in records[0][1]:
        whole = 100.0 if signs == {True} else 1.0
        if whole == 1 and any(cell.score is not None and cell.score > 1 for cell in cells):
            raise UserError("Errors above 1 are percentages; write them with percent signs, or as scores.")
        cells = [cell._replace(score=None if cell.score is None else whole - cell.score) for cell in cells]
    if len(signs) > 1:
        raise UserError("Some scores have a percent sign and some have none; write all of them alike.")
    return cells, signs == {True}


def size_of(text: str) -> float | None:
    """Billions of `7`, `7B` or `500M`; None of anything else."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or not _is_number(found[1]) or not 0 < float(found[1]) < LARGEST_B:
        return None
    return float(found[1]) * _UNITS[found[2].lower() or "b"]


def _lines(text: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header, and each line's number and cells by the header's names."""
    numbered = [
        (number, line)
        for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1)
        if line.strip(" \t;,") and not line.startswith("#")
    ]
    if not numbered:
        raise UserError("There is no line in it; write a header and scores.")
    marks = [mark for mark in "\t;," if mark in re.sub(r'"[^"]*"', "", numbered[0][1])]
    if len(marks) != 1:
        what = "no separator" if not marks else "several separators"
        raise UserError(f"Its header has {what}; separate columns by commas, tabs or semicolons alone.")
    try:
        rows = list(csv.reader((line for _, line in numbered), delimiter=marks[0], skipinitialspace=True))
    except csv.Error as problem:
        raise UserError(f"It cannot be read ({problem}); shorten its cells.") from None
    if len(rows) != len(numbered):
        raise UserError("A quoted cell goes on in the next line; write each line's cells on that line.")
    width = max((k for k, name in enumerate(rows[0], start=1) if name.strip()), default=0)
    header = [name.strip() for name in rows[0][:width]]
    if all(_is_number(name) for name in header):
        raise UserError("It has no header: its first line is numbers; name the columns.")
    if twice := [name for name, count in collections.Counter(header).items() if count > 1]:
        raise UserError(f"Its header names {twice[0]!r} twice.")
    lines = []
    for (number, _), row in zip(numbered[1:], rows[1:], strict=True):
        if len(row) < width or any(cell.strip() for cell in row[width:]):
            hint = "; is a decimal comma among them? Write points" if marks[0] == "," else ""
            raise UserError(f"Line {number} has {len(row)} cells, but the header has {width}{hint}.")
        lines.append((number, dict(zip(header, map(str.strip, row), strict=False))))
    return header, lines


def _tidy(header: Sequence[str], names: Sequence[str], lines: Lines) -> list[tuple[int, Record]]:
    column = _columns(header, names)
    if ("score" in column) == ("error" in column):
        raise UserError("It must have one column of `score` or `error` (1 - score), and not both.")
    return [(number, {key: (own, row[own]) for key, own in column.items()}) for number, row in lines]


def _wide(header: Sequence[str], names: Sequence[str], lines: Lines) -> list[tuple[int, Record]]:
    ((size, own),) = _columns(header[:1], names[:1]).items()
    for name in header[1:]:
        if not _COUNT.fullmatch(name):
            raise UserError(
                f"Its column {name!r} is not known; give numbers of visual tokens, or the columns params_b, "
                "visual_tokens and score (with stderr, task, seed)."
            )
    return [
        (number, {size: (own, row[own]), "visual_tokens": (name, name), "score": (name, row[name])})
        for number, row in lines
        for name in header[1:]
    ]


def _cell(number: int, record: Record, signs: set[bool]) -> Cell:
    """One score as it stands, of a column of errors too."""
    score = _number(number, record.get("score") or record["error"], signs)
    spread = _number(number, record["stderr"], signs) if "stderr" in record else None
    for key in ("task", "seed"):
        if key in record and not record[key][1]:
            raise UserError(f"Line {number} has no {key}.")
    size = _size(number, record)
    _, text = record["visual_tokens"]
    count = _COUNT.fullmatch(text)
    if count is None:
        raise UserError(f"Line {number} has {text!r} as visual tokens; write a whole number.")
    task, seed = (record.get(key, ("", ""))[1] for key in ("task", "seed"))
    return Cell(number, size, float(count[1]), task, seed, score, spread)


def _columns(header: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The header's own name of each column that is known."""
    column: dict[str, str] = {}
    for own, name in zip(header, names, strict=True):
        if not name:
            raise UserError(
                f"Its column {own!r} is not known; remove it, or name it one of params_b, visual_tokens, score, "
                "error, stderr, task, seed."
            )
        if name in column:
            raise UserError(f"Its columns {column[name]!r} and {own!r} mean the same; remove one.")
        column[name] = own
    if ("params_b" in column) == ("params" in column):
        raise UserError("It must have one column of LLM sizes; name it params_b (billions).")
    return column


def _size(number: int, record: Record) -> float:
    own, text = record.get("params_b") or record["params"]
    found = _SIZE.fullmatch(text)
    if found is None or not _is_number(found[1]):
        raise UserError(f"Line {number} has {text!r} as {own}; write a size such as 7 or 7B{_comma(text)}.")
    value = float(found[1])
    if found[2]:
        return value * _UNITS[found[2].lower()]
    if "params_b" in record:
        if value >= _PARAMETERS_FROM:
            raise UserError(f"Line {number} has {text} as {own}, which counts billions; write 7, 7B or 500M.")
        return value
    if value < _PARAMETERS_FROM:
        raise UserError(
            f"Line {number} has {text} as {own}, without a unit; write 7B, or name the column params_b."
        )
    return value / 1e9


def _number(number: int, said: tuple[str, str], signs: set[bool]) -> float | None:
    """A score, None where it is missing; notes in `signs` whether it has a percent sign."""
    own, text = said
    if text.lower() in _MISSING:
        return None
    bare = text.removesuffix("%").strip()
    if not _is_number(bare):
        raise UserError(
            f"Line {number} has {text!r} as {own}; write a number, or nothing for a missing score"
            f"{_comma(text)}."
        )
    signs.add(bare != text)
    return float(bare)


def _comma(text: str) -> str:
    has_one = re.fullmatch(r"[+-]?\d*,\d+\s*[%kmbt]?", text, re.I)
    return " (decimals behind a point, not a comma)" if has_one else ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
