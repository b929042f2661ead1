"""The table of scores that everything starts from, checked: of a decoded scores file, or of single scores."""

import collections
import dataclasses
import difflib
import math
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Float

from quecc_jax.errors import UserError
from scaling.limits import LEAST, MOST_TOKENS, refuse_axis, refuse_letters, refuse_table

_REQUIRED = ("params_b", "visual_tokens", "score")
_OPTIONAL = ("tasks", "query_tokens", "stderr", "name", "source", "flagged")
LARGEST_B = 1e4
"""Sizes of so many billions and more are counts of parameters by mistake."""


class Cell(NamedTuple):
    """One score of a file, and the number of its line or evaluation; in percent if all of them are."""

    number: int
    params_b: float
    visual_tokens: float
    task: str
    seed: str
    score: float | None
    stderr: float | None


@dataclasses.dataclass(frozen=True)
class Flag:
    """A cell that its source gives reason to doubt. It stays in the table."""

    params_b: float
    visual_tokens: float
    reason: str


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores over LLM sizes in billions and visual token counts, both ascending; score, stderr and each task
    are float64 in 0..1 with NaN for a missing cell."""

    params_b: Float[np.ndarray, " N"]
    visual_tokens: Float[np.ndarray, " V"]
    score: Float[np.ndarray, "N V"]
    stderr: Float[np.ndarray, "N V"] | None = None
    tasks: Mapping[str, Float[np.ndarray, "N V"]] = dataclasses.field(default_factory=dict)
    query_tokens: float | None = None
    name: str = "scores"
    source: str = ""
    flagged: tuple[Flag, ...] = ()

    @property
    def error(self) -> Float[np.ndarray, "N V"]:
        """1 - score."""
        return 1.0 - self.score

    @property
    def count_range(self) -> tuple[float, float]:
        """Fewest and most visual tokens in the table."""
        return float(self.visual_tokens[0]), float(self.visual_tokens[-1])

    @property
    def observed_axes(self) -> tuple[Float[np.ndarray, " sizes"], Float[np.ndarray, " counts"]]:
        """Sizes and visual token counts that have a score."""
        observed = np.isfinite(self.score)
        return self.params_b[observed.any(axis=1)], self.visual_tokens[observed.any(axis=0)]

    def for_task(self, task: str) -> "ScoreTable":
        """The table of one task alone, checked like any other."""
        alone = dataclasses.replace(
            self, score=self.tasks[task], tasks={}, stderr=None, name=task, flagged=()
        )
        try:
            return checked(alone)
        except UserError as problem:
            raise UserError(f"Task {task!r}: {problem}") from None

    def without_flagged(self) -> "ScoreTable":
        """The same table with the doubtful cells missing."""
        score = self.score.copy()
        for flag in self.flagged:
            score[np.ix_(self.params_b == flag.params_b, self.visual_tokens == flag.visual_tokens)] = np.nan
        return checked(dataclasses.replace(self, score=score, flagged=()))


def parse_scores(
    content: object, percent: bool = False, default_name: str = "scores", settled: bool = False
) -> ScoreTable:
    """The checked table of a decoded scores file, whose keys `scaling.scores` lists; arrays may stand for lists.

    Args:
      percent: the scores run from 0 to 100.
      default_name: the table's, where the content names none.
      settled: `percent` is known of each score; otherwise one of 1 and less beside others is refused, which
        may be a fraction.

    Raises:
      UserError: names the key or the cell that is wrong.
    """
    if not isinstance(content, Mapping):
        raise UserError("A scores file holds one JSON object with params_b, visual_tokens and score.")
    for key in content:
        close = difflib.get_close_matches(str(key), _REQUIRED + _OPTIONAL, n=1, cutoff=0.8)
        if close and key != close[0]:
            raise UserError(f"Unknown key {key!r}; did you mean {close[0]!r}?")
    for key in _REQUIRED:
        if key not in content:
            raise UserError(f"The key {key!r} is missing.")
    params_b = _axis(content["params_b"], "params_b")
    visual_tokens = _axis(content["visual_tokens"], "visual_tokens")
    if params_b.max() > LARGEST_B:
        raise UserError(f"'params_b' holds {params_b.max():g}, but it counts billions of parameters.")
    if visual_tokens.max() > MOST_TOKENS:
        raise UserError(
            f"'visual_tokens' holds {visual_tokens.max():g}, more than the {MOST_TOKENS:g} that any model reads."
        )
    ascending = np.ix_(np.argsort(params_b), np.argsort(visual_tokens))

    def grid(value: object, key: str) -> np.ndarray:
        return _grid(value, key, params_b, visual_tokens, 100.0 if percent else 1.0)[ascending]

    told = content.get("tasks") or {}
    if not isinstance(told, Mapping):
        raise UserError("'tasks' must be an object that maps each task's name to its scores.")
    refuse_table(len(params_b), len(visual_tokens), len(told))
    for name in told:
        refuse_letters(str(name), "The name of the task")
    score = grid(content["score"], "score")
    tasks = {str(name): grid(value, f"tasks[{name!r}]") for name, value in told.items()}
    if percent and not settled:
        grids = {"score": score} | {f"tasks[{name!r}]": value for name, value in tasks.items()}
        _refuse_fractions(
            (f"{key!r} at {n:g}B, {v:g} visual tokens", 100 * one)
            for key, value in grids.items()
            for n, row in zip(np.sort(params_b), value, strict=True)
            for v, one in zip(np.sort(visual_tokens), row, strict=True)
            if np.isfinite(one)
        )
    query_tokens = content.get("query_tokens")
    if query_tokens is not None and not (is_number(query_tokens) and 0 <= query_tokens <= MOST_TOKENS):
        raise UserError(
            f"'query_tokens' must be a number of at least 0 and at most {MOST_TOKENS:g}, not {query_tokens!r}."
        )
    stderr = content.get("stderr")
    name, source = str(content.get("name", default_name)), str(content.get("source", ""))
    refuse_letters(name, "The name")
    return checked(
        ScoreTable(
            params_b=np.sort(params_b),
            visual_tokens=np.sort(visual_tokens),
            score=score,
            stderr=None if stderr is None else grid(stderr, "stderr"),
            tasks=tasks,
            query_tokens=query_tokens,
            name=name,
            source=source,
            flagged=_flags(content.get("flagged") or [], params_b, visual_tokens),
        )
    )


def parse_cells(
    cells: Sequence[Cell],
    percent: bool = False,
    default_name: str = "scores",
    what: str = "line",
    settled: bool = False,
) -> ScoreTable:
    """The checked table of single scores: means over seeds by task, and over tasks where there are several.

    Args:
      what: what the cells' numbers count.
      percent, default_name, settled: as of `parse_scores`.

    Raises:
      UserError: a cell is given twice, or not for every task; or as `parse_scores`.
    """
    # Each score by itself: a mean over seeds or tasks would hide one in another scale.
    scores = [
        (f"{what.capitalize()} {cell.number}'s score at {cell.visual_tokens:g} visual tokens", cell.score)
        for cell in cells
    ]
    top = 100.0 if percent else 1.0
    known = [(where, _in_range(score, where, top)) for where, score in scores if score is not None]
    if percent and not settled:
        _refuse_fractions(known)
    groups: dict[tuple[str, float, float], dict[str, Cell]] = collections.defaultdict(dict)
    for cell in cells:
        runs = groups[cell.task, cell.params_b, cell.visual_tokens]
        if cell.seed in runs:
            raise UserError(
                f"{what.capitalize()}s {runs[cell.seed].number} and {cell.number} give the same cell twice "
                f"({cell.params_b:g}B, {cell.visual_tokens:g} visual tokens); remove one, or tell runs apart "
                "in a column seed."
            )
        runs[cell.seed] = cell
    tasks = sorted({task for task, _, _ in groups})
    sizes, counts = sorted({n for _, n, _ in groups}), sorted({v for _, _, v in groups})
    refuse_table(len(sizes), len(counts), len(tasks))
    for size, count in {key[1:] for key in groups}:
        if lacking := [task for task in tasks if (task, size, count) not in groups]:
            raise UserError(
                f"Task {lacking[0]!r} has no {what} for {size:g}B and {count:g} visual tokens; add one, with "
                "nothing as the score where it is missing."
            )

    def grid(field: Literal["score", "stderr"], among: Sequence[str]) -> list[list[float | None]]:
        def at(task: str, size: float, count: float) -> float | None:
            return _mean(
                [getattr(cell, field) for cell in groups.get((task, size, count), {}).values()], field
            )

        return [[_mean([at(task, n, v) for task in among], field) for v in counts] for n in sizes]

    content: dict[str, object] = {"params_b": sizes, "visual_tokens": counts, "score": grid("score", tasks)}
    if any(cell.stderr is not None for cell in cells):
        content["stderr"] = grid("stderr", tasks)
    if tasks != [""]:
        content["tasks"] = {task: grid("score", [task]) for task in tasks}
    return parse_scores(content, percent, default_name, settled=True)


def _refuse_fractions(scores: Iterable[tuple[str, float]]) -> None:
    """Refuses percentages, each behind where it stands, of which some or all may be fractions.

    A score of 0 is the same either way.
    """
    known = list(scores)
    largest = max((score for _, score in known), default=math.inf)
    if largest <= 1:
        raise UserError("No score is above 1, so these are no percentages; leave --percent out.")
    for where, score in known:
        if 0 < score <= 1:
            raise UserError(
                f"{where} is {score:g} and another is {largest:g}, so it may be a fraction or a percentage; write "
                "every score in percent (0.4 as 40), or, if it is one below 1 %, every score as a fraction "
                "without --percent (or each with a percent sign, in CSV)."
            )


def _in_range(score: object, where: str, top: float) -> float:
    """The score itself, if it is a number in 0..top."""
    if not is_number(score):
        raise UserError(f"{where} is {reprlib.repr(score)}; write null for a missing cell.")
    if not 0 <= score <= top:
        hint = ""
        if top == 1.0 and score > 1:
            hint = "; if these are percentages, write all of them so (0.4 as 40) and pass --percent"
        raise UserError(f"{where} is {score:g}, outside 0..{top:g}{hint}.")
    return score


def _mean(values: Sequence[float | None], field: Literal["score", "stderr"]) -> float | None:
    """The mean, or its standard error; None where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    total = math.fsum(known) if field == "score" else math.sqrt(math.fsum(x * x for x in known))
    return total / len(known)


def checked(table: ScoreTable) -> ScoreTable:
    """The table itself, if its observed cells can determine the exponents at all."""
    observed = np.isfinite(table.score)
    if not observed.any():
        raise UserError("Every cell of 'score' is missing.")
    sizes, counts = table.observed_axes
    if len(sizes) < 2:
        raise UserError(
            f"There are scores for one LLM size only ({sizes[0]:g}B); the law needs at least two sizes."
        )
    if len(counts) < 2:
        raise UserError(
            f"There are scores for one visual token count only ({counts[0]:g}); the law needs at least two."
        )
    i, j = np.nonzero(observed)
    design = np.stack([np.ones(len(i)), np.log(table.params_b[i]), np.log(table.visual_tokens[j])], axis=1)
    if np.linalg.matrix_rank(design - np.array([0.0, 1.0, 1.0]) * design.mean(axis=0)) < 3:
        raise UserError(
            "In the cells that have scores, size and visual tokens change together; "
            "their effects cannot be told apart without further cells."
        )
    return table


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value out of JSON is a finite number."""
    # A comparison, since an integer out of JSON may be too large for a float, of which isfinite makes one.
    finite = isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return finite and not isinstance(value, bool)


def _axis(values: object, key: str) -> np.ndarray:
    if not isinstance(values, list | tuple | np.ndarray) or len(values) == 0:
        raise UserError(f"{key!r} must be a list of numbers.")
    refuse_axis(len(values), key)
    listed = list(values.tolist() if isinstance(values, np.ndarray) else values)
    for value in listed:
        if not is_number(value) or value < LEAST:
            raise UserError(
                f"{key!r} must hold positive numbers, of at least {LEAST:g}; it holds {reprlib.repr(value)}."
            )
        if listed.count(value) > 1:
            raise UserError(f"{key!r} lists {value:g} twice; each row and column must be distinct.")
    return np.asarray(listed, np.float64)


def _grid(value: object, key: str, params_b: np.ndarray, visual_tokens: np.ndarray, top: float) -> np.ndarray:
    n, m = len(params_b), len(visual_tokens)
    if isinstance(value, np.ndarray):
        # An array has no null; there NaN is the only way to say that a cell is missing.
        value = [[None if np.isnan(cell) else cell for cell in row] for row in value.tolist()]
    if not isinstance(value, list | tuple) or not all(isinstance(row, list | tuple) for row in value):
        raise UserError(f"{key!r} must be a list of rows, one per entry of params_b.")
    if len(value) != n:
        raise UserError(f"{key!r} has {len(value)} rows, but params_b has {n} entries.")
    cells = np.full((n, m), np.nan)
    for i, row in enumerate(value):
        if len(row) != m:
            raise UserError(
                f"{key!r} is ragged: its row for {params_b[i]:g}B has {len(row)} entries, "
                f"but visual_tokens has {m}."
            )
        for j, cell in enumerate(row):
            if cell is None:
                continue
            where = f"{key!r} at {params_b[i]:g}B, {visual_tokens[j]:g} visual tokens"
            cells[i, j] = _in_range(cell, where, top) / top
    return cells


def _flags(entries: Iterable[Any], params_b: np.ndarray, visual_tokens: np.ndarray) -> tuple[Flag, ...]:
    try:
        flags = tuple(
            Flag(float(e["params_b"]), float(e["visual_tokens"]), str(e["reason"])) for e in entries
        )
    except (TypeError, KeyError, ValueError, OverflowError):
        raise UserError("'flagged' must list objects with params_b, visual_tokens and reason.") from None
    if len(flags) > len(params_b) * len(visual_tokens):
        raise UserError(f"'flagged' has {len(flags):,} entries, more than the table has cells.")
    for flag in flags:
        if flag.params_b not in params_b or flag.visual_tokens not in visual_tokens:
            raise UserError(
                f"'flagged' names {flag.params_b:g}B with {flag.visual_tokens:g} visual tokens, "
                "which is not a cell of the table."
            )
    return flags
