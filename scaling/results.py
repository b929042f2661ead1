"""Results of evaluations as the content of a scores file.

Read are `results.json` of `launch.evaluate` and of `launch.demo`, folders with `scores.json` of
`launch.sweep`, and what lmms-eval 0.7.3 writes (`DATE_results.json`: `results` by task, whose keys are
`metric,filter`). An evaluation is of one model, whose size and visual tokens it need not know: they are
written behind its path, as in `runs/a@7B,36`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quecc_jax.errors import UserError
from scaling.columns import Cell, content, size_of
from scaling.table import ScoreTable, parse_json, parse_scores, read_scores, read_text

_AT = re.compile(r"(.+)@([^@,]+)(?:,(\d+))?")
_COUNT = re.compile(r"(?:^|,)\s*visual_tokens=(\d+)\s*(?:,|$)")
_TOPS = {"mme": 2000.0}
"""Scores of a benchmark that is not in percent, in `launch.evaluate`'s results."""


class Source(NamedTuple):
    """What `--scores` names: a file or folder, and what it does not say itself."""

    path: Path
    params_b: float | None
    visual_tokens: float | None


def read_sources(sources: Sequence[str], metrics: Mapping[str, str], percent: bool = False) -> ScoreTable:
    """The table of one scores file, or of evaluations.

    Args:
      sources: paths, with `@N` or `@N,V` behind those that need it.
      metrics: the metric that counts, by lmms-eval's task, with `/TOP` where its best value is not 1.
      percent: the scores file's scores run from 0 to 100.

    Raises:
      UserError: a file cannot be read, or its model's size, tokens, metric or scale is not known.
    """
    read = [_source(one) for one in sources]
    if len(read) == 1 and read[0].params_b is None:
        path = read[0].path
        found = _json(path) if path.suffix.lower() == ".json" else {"params_b": None}
        if not isinstance(found, Mapping) or "params_b" in found:
            return read_scores(path, percent)
        if {"cells", "decoders"} <= found.keys():
            return _named(path, content(_grid(found)))
    if percent:
        raise UserError("--percent is of a scores file; evaluations say their scale themselves.")
    cells = [cell for number, one in enumerate(read, start=1) for cell in _cells(one, number, metrics)]
    return _named(Path("evaluations"), content(cells, "evaluation"))


def _named(path: Path, found: dict[str, Any]) -> ScoreTable:
    try:
        return parse_scores(found, default_name=path.parent.name or path.stem)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None


def _source(text: str) -> Source:
    found = _AT.fullmatch(text)
    if found is None or Path(text).exists():
        return Source(_file(Path(text)), None, None)
    size = size_of(found[2])
    if size is None:
        raise UserError(f"{text} names {found[2]!r} as its model's size; write billions, 7B or 500M.")
    return Source(_file(Path(found[1])), size, float(found[3]) if found[3] else None)


def _file(path: Path) -> Path:
    """The file of results in a folder."""
    if not path.is_dir():
        return path
    named = [path / name for name in ("scores.json", "results.json") if (path / name).is_file()]
    found = named[:1] or sorted(path.glob("*_results.json")) or sorted(path.glob("*/*_results.json"))
    if len(found) != 1:
        raise UserError(f"{path} holds {len(found)} files of results; name one.")
    return found[0]


def _json(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except UserError as problem:
        raise UserError(str(problem) if str(path) in str(problem) else f"{path}: {problem}") from None


def _cells(source: Source, number: int, metrics: Mapping[str, str]) -> list[Cell]:
    path, told = source.path, _json(source.path)
    if not isinstance(told, Mapping):
        raise UserError(f"{path} holds no object of results.")
    if "results" in told and "config" in told:
        scores, says = _of_lmms(path, told, metrics), _lmms_tokens(told)
    elif "checkpoint" in told and ("tasks" in told or "accuracy" in told):
        scores, says = _of_evaluate(path, told), told.get("visual_tokens")
    else:
        raise UserError(f"{path} is no results file of launch.evaluate or lmms-eval, nor a scores file.")
    if source.params_b is None:
        raise UserError(f"{path} does not say its model's size; write it behind the path, as in {path}@7B.")
    if says is not None and source.visual_tokens not in (None, float(says)):
        raise UserError(f"{path} has {says} visual tokens, not {source.visual_tokens:g}; leave them out.")
    count = source.visual_tokens if says is None else float(says)
    if count is None:
        raise UserError(
            f"{path} does not say its visual tokens; write them behind the path, as in {path}@7B,36."
        )
    return [Cell(number, source.params_b, count, task, "", score, spread) for task, score, spread in scores]


Scores = list[tuple[str, float, float | None]]
"""Task, share and its standard error."""


def _of_evaluate(path: Path, told: Mapping[str, Any]) -> Scores:
    if "tasks" not in told:
        return [(Path(str(told.get("data", "data"))).name, told["accuracy"], told.get("standard_error"))]
    found: Scores = []
    for name, task in told["tasks"].items():
        if task.get("headline") is None:
            raise UserError(f"{path} has no score of {name}, which a server scores; evaluate without it.")
        metric, top = task["metrics"][task["headline"]], _TOPS.get(name, 100.0)
        spread = metric.get("standard_error")
        found.append((name, metric["value"] / top, None if spread is None else spread / top))
    return found


def _of_lmms(path: Path, told: Mapping[str, Any], metrics: Mapping[str, str]) -> Scores:
    found: Scores = []
    for task, values in told["results"].items():
        named = {
            key: value
            for key, value in values.items()
            if "," in key and "_stderr" not in key and _is_score(value)
        }
        if not named:
            continue
        wanted, _, top = metrics.get(task, "").partition("/")
        keys = [key for key in named if wanted in ("", key, key.split(",")[0])]
        if len(keys) != 1:
            raise UserError(
                f"{path} has {len(keys)} metrics {wanted or ''} of {task}; name one with --metrics, as "
                f"{task}={sorted(named)[0].split(',')[0]} ({', '.join(sorted(named))})."
            )
        (key,) = keys
        metric, kept = key.split(",", 1)
        better = told.get("higher_is_better", {}).get(task, {}).get(metric)
        if better is False:
            raise UserError(
                f"{path}: less is better of {metric} of {task}, so it is no score; name another with "
                "--metrics."
            )
        value, scale = float(named[key]), _top(task, top)
        if value > scale:
            raise UserError(
                f"{path}: {metric} of {task} is {value:g}, above {scale:g}; say its best value, as in "
                f"--metrics {task}={metric}/100."
            )
        spread = values.get(f"{metric}_stderr,{kept}")
        found.append((task, value / scale, spread / scale if _is_score(spread) else None))
    if not found:
        raise UserError(f"{path} has no score of any task.")
    return found


def _top(task: str, text: str) -> float:
    try:
        top = float(text or 1)
    except ValueError:
        top = math.nan
    if not 0 < top < math.inf:
        raise UserError(f"--metrics gives {text!r} as the best value of {task}; write a number such as 100.")
    return top


def _lmms_tokens(told: Mapping[str, Any]) -> float | None:
    """V, if the model's arguments name it as `visual_tokens`."""
    arguments = told["config"].get("model_args")
    if isinstance(arguments, Mapping):
        return arguments.get("visual_tokens")
    found = _COUNT.search(str(arguments or ""))
    return None if found is None else float(found[1])


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _grid(told: Mapping[str, Any]) -> list[Cell]:
    """The cells of a demo or study: accuracies with the question, by task and seed."""
    sizes = {decoder["name"]: decoder["params"] / 1e9 for decoder in told["decoders"]}
    found = []
    for number, cell in enumerate(told["cells"], start=1):
        for task in told["tasks"] if cell["query"] == "question" else ():
            found.append(
                Cell(
                    number,
                    sizes[cell["decoder"]],
                    float(cell["visual_tokens"]),
                    task,
                    str(cell["seed"]),
                    cell["scores"].get(task),
                    None,
                )
            )
    return found
