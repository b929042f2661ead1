"""Reads scores: a scores file, a grid of experiments, evaluations of several models, or a published table.

    {"params_b": [n], "visual_tokens": [m], "score": [[n x m]],
     "tasks": {name: [[n x m]]}, "query_tokens": Q, "stderr": [[n x m]],
     "name": text, "source": text, "flagged": [{"params_b", "visual_tokens", "reason"}], "crc32": text}

is a scores file in JSON: `score` is a fraction in 0..1, null stands for a missing cell, and only the first
three are required; `crc32` is what programs write. `columns` describes
scores files in CSV, `evaluations` files of results.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from quecc_jax.errors import UserError
from quecc_jax.json_text import parsed, reason
from quecc_jax.records import unsealed
from scaling import columns, evaluations
from scaling.limits import FILE_BYTES
from scaling.table import Cell, ScoreTable, parse_cells, parse_scores

PUBLISHED = ("general", "ocr")
"""Names of the paper's own tables: nine benchmarks, and DocVQA with TextVQA."""
_DATA = Path(__file__).parent / "data"
_COLUMNS = (".csv", ".tsv", ".tab", ".txt")
_CITED = 300
"""Letters that are kept at both ends of a longer message."""
_AT = re.compile(r"(.+)@([^@,]+)(?:,(\d+))?")


class _Source(NamedTuple):
    """A file, and what is said behind its name: its model's size in billions and visual tokens."""

    path: Path
    params_b: float | None = None
    visual_tokens: float | None = None


def published(name: str) -> ScoreTable:
    """The paper's own scores, by a name of PUBLISHED.

    Raises:
      UserError: there is no such table.
    """
    if name not in PUBLISHED:
        raise UserError(f"There is no published table {name!r}; there are: {', '.join(PUBLISHED)}.")
    return read_scores(_DATA / f"{name}.json")


def read_scores(
    *sources: str | Path, metrics: Mapping[str, str] | None = None, percent: bool = False
) -> ScoreTable:
    """The table of one file of scores, of evaluations of several models, or of a published name.

    Args:
      sources: files or their folders, with `@N` or `@N,V` behind evaluations that do not say their model's
        size or visual tokens, as in `runs/a@7B,36`.
      metrics: the metric that counts, by lmms-eval's task, with `/TOP` where its best value is not 1.
      percent: the scores of a scores file run from 0 to 100.

    Raises:
      UserError: a file cannot be read, or does not say a score, size, number of tokens, metric or scale.
    """
    if len(sources) == 1 and is_published(str(sources[0])):
        _refuse_unread(str(sources[0]), metrics, percent)
        return published(str(sources[0]))
    read = [_source(str(one)) for one in sources]
    if len(read) == 1 and read[0].params_b is None:
        table = _complete(read[0].path, metrics, percent)
        if table is not None:
            return table
    if percent:
        raise UserError("--percent is of a scores file; evaluations say their scale themselves.")
    cells = [cell for number, one in enumerate(read, start=1) for cell in _cells(one, number, metrics or {})]
    tasks = sorted({cell.task for cell in cells})
    for task in metrics or {}:
        if task not in tasks:
            raise UserError(
                f"--metrics names {task}, of which no evaluation has a score; they have {', '.join(tasks)}."
            )
    with _naming(Path("evaluations")):
        return parse_cells(cells, default_name="evaluations", what="evaluation")


def is_scores(told: object) -> bool:
    """Whether a decoded file is a scores file; a fit.json repeats the scores beside its constants."""
    return (
        isinstance(told, Mapping)
        and {"params_b", "visual_tokens", "score"} <= told.keys()
        and "A" not in told
    )


def is_published(source: str) -> bool:
    """Whether a source names a published table, and no file."""
    return source in PUBLISHED and not Path(source).exists()


def _refuse_unread(source: str | Path, metrics: Mapping[str, str] | None, percent: bool = False) -> None:
    """Refuses what a table that is complete and in fractions would not read."""
    if metrics:
        raise UserError(f"{source} is a table of scores, not of lmms-eval's metrics; leave --metrics out.")
    if percent:
        raise UserError(f"{source} says its scale itself; leave --percent out.")


def _complete(path: Path, metrics: Mapping[str, str] | None, percent: bool) -> ScoreTable | None:
    """The table of a file that holds all of it; None if it is an evaluation of one model."""
    text = _text(path)
    with _naming(path):
        if path.suffix.lower() in _COLUMNS:
            _refuse_unread("It", metrics)
            cells, signs = columns.parse(text)
            return parse_cells(cells, percent or signs, path.stem, settled=signs)
        told = _json(text)
        if evaluations.is_evaluation(told):
            return None
        if evaluations.is_grid(told):
            _refuse_unread("It", metrics, percent)
            return parse_cells(evaluations.grid_cells(told), default_name=path.parent.name or path.stem)
        _refuse_unread("It", metrics)
        return parse_scores(told, percent, path.stem)


def _cells(source: _Source, number: int, metrics: Mapping[str, str]) -> list[Cell]:
    """The scores of one evaluation."""
    path = source.path
    if is_published(str(path)):
        raise UserError(f"{path} is a published table; give it alone and without @.")
    text, told = _text(path), None
    is_table = path.suffix.lower() in _COLUMNS
    if not is_table:
        with _naming(path):
            told = _json(text)
        is_table = is_scores(told) or evaluations.is_grid(told)
    if is_table:
        raise UserError(f"{path} holds the scores of several models; give it alone and without @.")
    if not evaluations.is_evaluation(told):
        raise UserError(f"{path} is no results file of launch.evaluate or lmms-eval, nor a scores file.")
    scores, says = evaluations.scores_of(told, path, metrics)
    if source.params_b is None:
        raise UserError(f"{path} does not say its model's size; write it behind the path, as in {path}@7B.")
    if says is not None and source.visual_tokens not in (None, says):
        raise UserError(f"{path} has {says:g} visual tokens, not {source.visual_tokens:g}; leave them out.")
    count = source.visual_tokens if says is None else says
    if count is None:
        raise UserError(
            f"{path} does not say its visual tokens; write them behind the path, as in {path}@7B,36."
        )
    return [Cell(number, source.params_b, count, task, "", score, spread) for task, score, spread in scores]


def _source(text: str) -> _Source:
    found = _AT.fullmatch(text)
    if found is None or Path(text).exists():
        return _Source(_file(Path(text)))
    size = columns.size_of(found[2])
    if size is None:
        raise UserError(f"{text} names {found[2]!r} as its model's size; write billions, 7B or 500M.")
    return _Source(_file(Path(found[1])), size, float(found[3]) if found[3] else None)


def _file(path: Path) -> Path:
    """The file of results in a folder."""
    if not path.is_dir():
        return path
    named = [path / name for name in ("scores.json", "results.json") if (path / name).is_file()]
    found = named[:1] or sorted(path.glob("*_results.json")) or sorted(path.glob("*/*_results.json"))
    if not found:
        raise UserError(f"{path} holds no results files; name a scores file or a folder of results.")
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} results files; name one.")
    return found[0]


def _text(path: Path) -> str:
    """The text of a file, without a byte order mark."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES + 1)
        text = content.decode("utf-8-sig") if len(content) <= FILE_BYTES else None
    except OSError as problem:
        raise UserError(f"Cannot read the scores file {path}: {problem.strerror}.") from None
    except UnicodeDecodeError:
        text = "\0"
    if text is None:
        raise UserError(
            f"{path} is larger than {FILE_BYTES / 2**20:g} MiB, more than the scores of the largest table that a "
            "fit takes; keep its sizes, visual tokens and scores alone."
        )
    if "\0" in text:
        raise UserError(f"{path} is not a text file in UTF-8; a scores file is JSON, CSV or TSV.")
    return text


def _json(text: str) -> object:
    """The value of a JSON text, whose checksum, if it has one, is right."""
    try:
        told = parsed(text)
    except json.JSONDecodeError as problem:
        raise UserError(
            f"It is not valid JSON: {reason(problem)} at line {problem.lineno}, column {problem.colno}."
        ) from None
    except ValueError as problem:
        raise UserError(f"It is not valid JSON: {reason(problem)}.") from None
    except RecursionError:
        raise UserError("It is not valid JSON: it is nested too deeply.") from None
    return unsealed(told, "It", "write it anew")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors inside name the file; what they cite of it at length is cut."""
    try:
        yield
    except UserError as problem:
        said = str(problem)
        if len(said) > 2 * _CITED:
            said = f"{said[:_CITED]} ... {said[-_CITED:]}"
        raise UserError(f"{path}: {said}") from None
