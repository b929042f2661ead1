"""The scores file: reading it, checking it, and the published tables.

    {"params_b": [n], "visual_tokens": [m], "score": [[n x m]],
     "tasks": {name: [[n x m]]}, "query_tokens": Q, "stderr": [[n x m]],
     "name": text, "source": text, "flagged": [{"params_b", "visual_tokens", "reason"}]}

`score` is a fraction in 0..1; null stands for a missing cell. Only the first three are required.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quecc_jax.errors import UserError
from scaling.columns import LARGEST_B, content_of

_REQUIRED = ("params_b", "visual_tokens", "score")
_OPTIONAL = ("tasks", "query_tokens", "stderr", "name", "source", "flagged")
PUBLISHED = ("general", "ocr")
"""Names of the paper's own tables."""
_DATA = Path(__file__).parent / "data"


@dataclasses.dataclass(frozen=True)
class Flag:
    """A cell that its source gives reason to doubt. It stays in the table."""

    params_b: float
    visual_tokens: float
    reason: str


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores over LLM sizes and visual token counts, both ascending.

    params_b [n] in billions; visual_tokens [m]; score, stderr and each task [n, m], float64 in
    0..1 with NaN for a missing cell.
    """

    params_b: np.ndarray
    visual_tokens: np.ndarray
    score: np.ndarray
    stderr: np.ndarray | None = None
    tasks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    query_tokens: float | None = None
    name: str = "scores"
    source: str = ""
    flagged: tuple[Flag, ...] = ()

    @property
    def error(self) -> np.ndarray:
        """1 - score, [n, m]."""
        return 1.0 - self.score

    @property
    def count_range(self) -> tuple[float, float]:
        """Fewest and most visual tokens in the table."""
        return float(self.visual_tokens[0]), float(self.visual_tokens[-1])

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


def published(name: str) -> ScoreTable:
    """The paper's own scores: "general" (nine benchmarks) or "ocr" (DocVQA and TextVQA)."""
    path = _DATA / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in _DATA.glob("*.json")))
        raise UserError(f"There is no published table {name!r}; there are: {known}.")
    return read_scores(path)


def read_scores(path: str | Path, percent: bool = False) -> ScoreTable:
    """Reads and checks a scores file: JSON, or columns (.csv, .tsv) as `columns` describes them.

    `percent` says that scores run from 0 to 100. Raises UserError with one sentence that names the file and
    the defect.
    """
    path = Path(path)
    text = read_text(path)
    try:
        if path.suffix.lower() in (".csv", ".tsv", ".tab", ".txt"):
            content, signs = content_of(text)
            percent = percent or signs
        else:
            content = parse_json(text)
        return parse_scores(content, percent, default_name=path.stem)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
      UserError: it cannot be read, or is no UTF-8 text.
    """
    try:
        raw = path.read_bytes()
    except OSError as problem:
        raise UserError(f"Cannot read the scores file {path}: {problem.strerror}.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError(f"{path} is not a text file in UTF-8; a scores file is JSON, CSV or TSV.")
    return text


def parse_json(text: str) -> Any:
    """The value of a JSON text, whose objects hold each name once.

    Raises:
      UserError: it is no JSON, or holds a name twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
            raise UserError(f"The key {twice!r} stands in it twice; remove one.")
        return made

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as problem:
        raise UserError(
            f"It is not valid JSON: {problem.msg} at line {problem.lineno}, column {problem.colno}."
        ) from None


def parse_scores(content: Any, percent: bool = False, default_name: str = "scores") -> ScoreTable:
    """A checked table from the decoded JSON object (or an equal Python dict)."""
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
    rows, columns = np.argsort(params_b), np.argsort(visual_tokens)

    def grid(value: Any, key: str) -> np.ndarray:
        cells = _grid(value, key, params_b, visual_tokens, 100.0 if percent else 1.0)
        return cells[np.ix_(rows, columns)]

    score = grid(content["score"], "score")
    if percent and np.isfinite(score).any() and np.nanmax(score) <= 0.01:
        raise UserError("No score is above 1, so these are no percentages; leave --percent out.")
    tasks = content.get("tasks") or {}
    if not isinstance(tasks, Mapping):
        raise UserError("'tasks' must be an object that maps each task's name to its scores.")
    query_tokens = content.get("query_tokens")
    if query_tokens is not None and not (_is_number(query_tokens) and query_tokens >= 0):
        raise UserError(f"'query_tokens' must be a number of at least 0, not {query_tokens!r}.")
    stderr = content.get("stderr")
    return checked(
        ScoreTable(
            params_b=params_b[rows],
            visual_tokens=visual_tokens[columns],
            score=score,
            stderr=None if stderr is None else grid(stderr, "stderr"),
            tasks={str(name): grid(value, f"tasks[{name!r}]") for name, value in tasks.items()},
            query_tokens=query_tokens,
            name=str(content.get("name", default_name)),
            source=str(content.get("source", "")),
            flagged=_flags(content.get("flagged") or [], params_b, visual_tokens),
        )
    )


def checked(table: ScoreTable) -> ScoreTable:
    """The table itself, if its observed cells can determine the exponents at all."""
    observed = np.isfinite(table.score)
    if not observed.any():
        raise UserError("Every cell of 'score' is missing.")
    sizes = table.params_b[observed.any(axis=1)]
    counts = table.visual_tokens[observed.any(axis=0)]
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _axis(values: Any, key: str) -> np.ndarray:
    if not isinstance(values, list | tuple | np.ndarray) or len(values) == 0:
        raise UserError(f"{key!r} must be a list of numbers.")
    values = values.tolist() if isinstance(values, np.ndarray) else list(values)
    for value in values:
        if not _is_number(value) or value <= 0:
            raise UserError(f"{key!r} must hold positive numbers; it holds {value!r}.")
    for value in values:
        if values.count(value) > 1:
            raise UserError(f"{key!r} lists {value:g} twice; each row and column must be distinct.")
    return np.asarray(values, np.float64)


def _grid(value: Any, key: str, params_b: np.ndarray, visual_tokens: np.ndarray, top: float) -> np.ndarray:
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
            if not _is_number(cell):
                raise UserError(f"{where} is {cell!r}; write null for a missing cell.")
            if not 0 <= cell <= top:
                hint = "; if these are percentages, pass --percent" if top == 1.0 and cell > 1 else ""
                raise UserError(f"{where} is {cell:g}, outside 0..{top:g}{hint}.")
            cells[i, j] = cell / top
    return cells


def _flags(entries: Any, params_b: np.ndarray, visual_tokens: np.ndarray) -> tuple[Flag, ...]:
    try:
        flags = tuple(
            Flag(float(e["params_b"]), float(e["visual_tokens"]), str(e["reason"])) for e in entries
        )
    except (TypeError, KeyError, ValueError):
        raise UserError("'flagged' must list objects with params_b, visual_tokens and reason.") from None
    for flag in flags:
        if flag.params_b not in params_b or flag.visual_tokens not in visual_tokens:
            raise UserError(
                f"'flagged' names {flag.params_b:g}B with {flag.visual_tokens:g} visual tokens, "
                "which is not a cell of the table."
            )
    return flags
