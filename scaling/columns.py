"""Scores in columns, as spreadsheets write them, as the content of a scores file.

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
from typing import Any, NamedTuple

from quecc_jax.errors import UserError

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
_MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "–", "—"}
_UNITS = {"k": 1e-6, "m": 1e-3, "b": 1.0, "t": 1e3}
_SIZE = re.compile(r"([0-9.]+(?:e[+-]?\d+)?)\s*([kmbt]?)", re.I)
_COUNT = re.compile(r"(?:v|visual_tokens)?\s*[=_ ]?\s*(\d+(?:\.0*)?)", re.I)
PARAMETERS_FROM = 1e6
"""A plain number of at least so much counts parameters, one below LARGEST_B billions of them."""
LARGEST_B = 1e4


class Line(NamedTuple):
    """A line of the file: its number, and its cells by the header's names."""

    number: int
    cells: Mapping[str, str]


class Cell(NamedTuple):
    """One score. Unit 1 for shares, 100 for cells with a percent sign."""

    line: int
    params_b: float
    visual_tokens: float
    task: str
    seed: str
    score: float | None
    stderr: float | None


def content_of(text: str) -> tuple[dict[str, Any], bool]:
    """The content of a scores file as `table.parse_scores` takes it, and whether its cells said "%".

    Raises:
      UserError: names the line that cannot be read, or can be in two ways.
    """
    header, lines = _lines(text)
    names = [_NAMES.get(_plain(name), "") for name in header]
    if "visual_tokens" in names:
        cells, signs = _tidy(header, names, lines)
    else:
        cells, signs = _wide(header, names, lines)
    if len(signs) > 1:
        raise UserError("Some scores have a percent sign and some have none; write all of them alike.")
    return content(cells), signs == {True}


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _lines(text: str) -> tuple[list[str], list[Line]]:
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
    rows = list(csv.reader((line for _, line in numbered), delimiter=marks[0], skipinitialspace=True))
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
        lines.append(Line(number, dict(zip(header, map(str.strip, row), strict=False))))
    return header, lines


def _tidy(header: Sequence[str], names: Sequence[str], lines: Sequence[Line]) -> tuple[list[Cell], set[bool]]:
    column = _columns(header, names)
    if ("score" in column) == ("error" in column):
        raise UserError("It must have one column of `score` or `error` (1 - score), and not both.")
    measured = "score" if "score" in column else "error"
    cells, signs = [], set[bool]()
    for number, row in lines:
        score = _number(row[column[measured]], number, column[measured], signs)
        own = column.get("stderr")
        spread = None if own is None else _number(row[own], number, own, signs)
        task, seed = (row[column[key]] if key in column else "" for key in ("task", "seed"))
        for key, value in (("task", task), ("seed", seed)):
            if key in column and not value:
                raise UserError(f"Line {number} has no {key}.")
        cells.append(
            Cell(
                number,
                _size(row, column, number),
                _count(row[column["visual_tokens"]], number),
                task,
                seed,
                score,
                spread,
            )
        )
    if measured == "error":
        whole = 100.0 if signs == {True} else 1.0
        if whole == 1 and any(cell.score is not None and cell.score > 1 for cell in cells):
            raise UserError("Errors above 1 are percentages; write them with percent signs, or as scores.")
        cells = [cell._replace(score=None if cell.score is None else whole - cell.score) for cell in cells]
    return cells, signs


def _wide(header: Sequence[str], names: Sequence[str], lines: Sequence[Line]) -> tuple[list[Cell], set[bool]]:
    column = _columns(header[:1], names[:1])
    counts = {}
    for name in header[1:]:
        found = _COUNT.fullmatch(name.strip())
        if found is None:
            raise UserError(
                f"Its column {name!r} is not known; give numbers of visual tokens, or the columns params_b, "
                "visual_tokens and score (with stderr, task, seed)."
            )
        counts[name] = float(found[1])
    signs = set[bool]()
    cells = [
        Cell(number, _size(row, column, number), count, "", "", _number(row[name], number, name, signs), None)
        for number, row in lines
        for name, count in counts.items()
    ]
    return cells, signs


def _columns(header: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The header's own name of each column that is known."""
    column: dict[str, str] = {}
    for own, name in zip(header, names, strict=True):
        if not name:
            raise UserError(f"Its column {own!r} is not known; remove it, or name it one of {_known()}.")
        if name in column:
            raise UserError(f"Its columns {column[name]!r} and {own!r} mean the same; remove one.")
        column[name] = own
    if ("params_b" in column) == ("params" in column):
        raise UserError("It must have one column of LLM sizes; name it params_b (billions).")
    return column


def _known() -> str:
    return "params_b, visual_tokens, score, error, stderr, task, seed"


def _size(row: Mapping[str, str], column: Mapping[str, str], number: int) -> float:
    own = column.get("params_b") or column["params"]
    text = row[own]
    found = _SIZE.fullmatch(text)
    if found is None or not _is_number(found[1]):
        raise UserError(f"Line {number} has {text!r} as {own}; write a size such as 7 or 7B{_comma(text)}.")
    value = float(found[1])
    if found[2]:
        return value * _UNITS[found[2].lower()]
    if value >= PARAMETERS_FROM:
        if "params_b" in column:
            raise UserError(f"Line {number} has {text} as {own}, which counts billions; write 7, 7B or 500M.")
        return value / 1e9
    if "params_b" not in column:
        raise UserError(
            f"Line {number} has {text} as {own}, without a unit; write 7B, or name the column params_b."
        )
    return value


def size_of(text: str) -> float | None:
    """Billions of `7`, `7B` or `500M`; None of anything else."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or not _is_number(found[1]) or not 0 < float(found[1]) < LARGEST_B:
        return None
    return float(found[1]) * _UNITS[found[2].lower() or "b"]


def _count(text: str, number: int) -> float:
    found = _COUNT.fullmatch(text)
    if found is None:
        raise UserError(f"Line {number} has {text!r} as visual tokens; write a whole number.")
    return float(found[1])


def _number(text: str, line: int, own: str, signs: set[bool]) -> float | None:
    """A score; notes whether it has a percent sign."""
    if text.lower() in _MISSING:
        return None
    bare = text.removesuffix("%").strip()
    if not _is_number(bare):
        raise UserError(
            f"Line {line} has {text!r} as {own}; write a number, or nothing for a missing score"
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


def content(cells: Sequence[Cell], what: str = "line") -> dict[str, Any]:
    """The content of a scores file: means over seeds by task, and over tasks where there are several.

    Raises:
      UserError: a cell is given twice, or not for every task; `what` the cells' numbers count.
    """
    seen: dict[tuple, int] = {}
    groups: dict[tuple[str, float, float], list[Cell]] = collections.defaultdict(list)
    for cell in cells:
        key = (cell.task, cell.params_b, cell.visual_tokens, cell.seed)
        if key in seen:
            raise UserError(
                f"{what.capitalize()}s {seen[key]} and {cell.line} give the same cell twice "
                f"({cell.params_b:g}B, {cell.visual_tokens:g} visual tokens); remove one, or tell runs apart "
                "in a column seed."
            )
        seen[key] = cell.line
        groups[key[:3]].append(cell)
    sizes = sorted({cell.params_b for cell in cells})
    counts = sorted({cell.visual_tokens for cell in cells})
    tasks = sorted({cell.task for cell in cells})
    for size, count in {key[1:] for key in groups}:
        if lacking := [task for task in tasks if (task, size, count) not in groups]:
            raise UserError(
                f"Task {lacking[0]!r} has no {what} for {size:g}B and {count:g} visual tokens; add one, with "
                "nothing as the score where it is missing."
            )

    def mean(field: str, task: str, size: float, count: float) -> float | None:
        values = [getattr(cell, field) for cell in groups.get((task, size, count), ())]
        if not values or None in values:
            return None
        if field == "stderr":
            return math.sqrt(math.fsum(value**2 for value in values)) / len(values)
        return math.fsum(values) / len(values)

    def grid(field: str, task: str) -> list[list[float | None]]:
        return [[mean(field, task, size, count) for count in counts] for size in sizes]

    def over(grids: Sequence[list[list[float | None]]], root: bool) -> list[list[float | None]]:
        def joined(values: Sequence[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                return None
            total = math.sqrt(math.fsum(x * x for x in known)) if root else math.fsum(known)
            return total / len(known)

        return [[joined(one) for one in zip(*rows, strict=True)] for rows in zip(*grids, strict=True)]

    scores = {task: grid("score", task) for task in tasks}
    made: dict[str, Any] = {
        "params_b": sizes,
        "visual_tokens": counts,
        "score": over(list(scores.values()), False),
    }
    if any(cell.stderr is not None for cell in cells):
        made["stderr"] = over([grid("stderr", task) for task in tasks], True)
    if tasks != [""]:
        made["tasks"] = scores
    return made
