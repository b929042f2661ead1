"""Scores in files of results: of `launch.evaluate`, of a grid of experiments, and of lmms-eval.

lmms-eval 0.7.3 writes `DATE_results.json`: `results` by task, whose keys are `metric,filter`. An evaluation is
of one model, whose size and visual tokens it need not know.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeGuard

import msgspec

from quecc_jax.errors import UserError
from quecc_jax.records import Finite, NonNegative, of_form
from scaling.table import Cell, is_number

Told = Mapping[str, Any]
"""A decoded file of results."""
Tokens = Annotated[float, msgspec.Meta(ge=0, lt=2**63)]
_ADVICE = "write it anew"

_COUNT = re.compile(r"(?:^|,)\s*visual_tokens=(\d+)\s*(?:,|$)")
_TOPS = {"mme": 2000.0}
"""Scores of a benchmark that is not in percent, in `launch.evaluate`'s results."""


class Score(NamedTuple):
    """One task's share and its standard error."""

    task: str
    share: float
    stderr: float | None


class _Metric(msgspec.Struct):
    value: Finite
    standard_error: NonNegative | None = None


class _Task(msgspec.Struct):
    headline: str | None = None
    metrics: dict[str, _Metric] = {}


class _Evaluation(msgspec.Struct):
    """Of `launch.evaluate`."""

    visual_tokens: Tokens | None = None
    data: str = "data"
    accuracy: Finite | None = None
    standard_error: NonNegative | None = None
    tasks: dict[str, _Task] | None = None


class _Lmms(msgspec.Struct):
    results: dict[str, dict[str, Any]]
    config: dict[str, Any]
    higher_is_better: dict[str, dict[str, Any]] = {}


class _Decoder(msgspec.Struct):
    name: str
    params: NonNegative


class _GridCell(msgspec.Struct):
    decoder: str
    visual_tokens: Tokens
    seed: int
    query: str
    scores: dict[str, Finite | None]


class _Grid(msgspec.Struct):
    decoders: list[_Decoder]
    cells: list[_GridCell]
    tasks: list[str]


def is_evaluation(told: object) -> TypeGuard[Told]:
    """Whether a file holds results of one model."""
    return isinstance(told, Mapping) and (
        _is_lmms(told) or ("checkpoint" in told and ("tasks" in told or "accuracy" in told))
    )


def is_grid(told: object) -> TypeGuard[Told]:
    """Whether a file holds the results of a grid of experiments."""
    return isinstance(told, Mapping) and {"cells", "decoders"} <= told.keys()


def scores_of(told: Told, path: Path, metrics: Mapping[str, str]) -> tuple[list[Score], float | None]:
    """The scores of an evaluation, and its visual tokens where it says them.

    Raises:
      UserError: which of lmms-eval's metrics is meant, or its scale, is not known, or the file is damaged.
    """
    if _is_lmms(told):
        lmms = of_form(told, _Lmms, str(path), _ADVICE)
        return _of_lmms(lmms, path, metrics), _lmms_tokens(lmms, path)
    found = of_form(told, _Evaluation, str(path), _ADVICE)
    return _of_evaluate(found, path), found.visual_tokens


def grid_cells(told: Told) -> list[Cell]:
    """The cells of a grid of experiments: accuracies with the question, by task and seed.

    Raises:
      UserError: it is damaged.
    """
    grid = of_form(told, _Grid, "It", _ADVICE)
    sizes = {decoder.name: decoder.params / 1e9 for decoder in grid.decoders}
    for cell in grid.cells:
        if cell.decoder not in sizes:
            raise UserError(f"A cell is of the decoder {cell.decoder!r}, which the file does not describe.")
    return [
        Cell(
            number, sizes[cell.decoder], cell.visual_tokens, task, str(cell.seed), cell.scores.get(task), None
        )
        for number, cell in enumerate(grid.cells, start=1)
        if cell.query == "question"
        for task in grid.tasks
    ]


def _is_lmms(told: Told) -> bool:
    return {"results", "config"} <= told.keys()


def _of_evaluate(told: _Evaluation, path: Path) -> list[Score]:
    if told.tasks is None:
        if told.accuracy is None:
            raise UserError(f"{path} has no accuracy; evaluate again.")
        return [Score(Path(told.data).name, told.accuracy, told.standard_error)]
    found = []
    for name, task in told.tasks.items():
        if task.headline is None:
            raise UserError(f"{path} has no score of {name}, which a server scores; evaluate without it.")
        if task.headline not in task.metrics:
            raise UserError(f"{path} has no {task.headline} of {name}, which it names as its score.")
        metric, top = task.metrics[task.headline], _TOPS.get(name, 100.0)
        spread = metric.standard_error
        found.append(Score(name, metric.value / top, None if spread is None else spread / top))
    return found


def _of_lmms(told: _Lmms, path: Path, metrics: Mapping[str, str]) -> list[Score]:
    found = []
    for task, values in told.results.items():
        named = [key for key in values if "," in key and "_stderr" not in key and is_number(values[key])]
        if not named:
            continue
        wanted, _, top = metrics.get(task, "").partition("/")
        keys = [key for key in named if wanted in ("", key, key.split(",")[0])]
        if len(keys) != 1:
            raise UserError(
                f"{path} has {len(keys)} metrics {wanted or ''} of {task}; name one with --metrics, as "
                f"{task}={sorted(named)[0].split(',')[0]} ({', '.join(sorted(named))})."
            )
        metric, kept = keys[0].split(",", 1)
        if told.higher_is_better.get(task, {}).get(metric) is False:
            raise UserError(
                f"{path}: less is better of {metric} of {task}, so it is no score; name another with "
                "--metrics."
            )
        value, scale = float(values[keys[0]]), _best_value(task, top)
        if value > scale:
            raise UserError(
                f"{path}: {metric} of {task} is {value:g}, above {scale:g}; say its best value, as in "
                f"--metrics {task}={metric}/100."
            )
        spread = values.get(f"{metric}_stderr,{kept}")
        found.append(Score(task, value / scale, spread / scale if is_number(spread) else None))
    if not found:
        raise UserError(f"{path} has no score of any task.")
    return found


def _best_value(task: str, text: str) -> float:
    try:
        top = float(text or 1)
    except ValueError:
        top = math.nan
    if not 0 < top < math.inf:
        raise UserError(f"--metrics gives {text!r} as the best value of {task}; write a number such as 100.")
    return top


def _lmms_tokens(told: _Lmms, path: Path) -> float | None:
    """V, if the model's arguments name it as `visual_tokens`."""
    arguments = told.config.get("model_args")
    if isinstance(arguments, Mapping):
        return of_form(arguments.get("visual_tokens"), Tokens | None, str(path), _ADVICE)  # type: ignore[arg-type]
    found = _COUNT.search(str(arguments or ""))
    return None if found is None else float(found[1])
