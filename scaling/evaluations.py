"""Scores in files of results: of `launch.evaluate`, of a grid of experiments, and of lmms-eval.

lmms-eval 0.7.3 writes `DATE_results.json`: `results` by task, whose keys are `metric,filter`. An evaluation is
of one model, whose size and visual tokens it need not know.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from quecc_jax.errors import UserError
from scaling.table import Cell, is_number

Told = Mapping[str, Any]
"""A decoded file of results."""

_COUNT = re.compile(r"(?:^|,)\s*visual_tokens=(\d+)\s*(?:,|$)")
_TOPS = {"mme": 2000.0}
"""Scores of a benchmark that is not in percent, in `launch.evaluate`'s results."""


class Score(NamedTuple):
    """One task's share and its standard error."""

    task: str
    share: float
    stderr: float | None


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
      UserError: which of lmms-eval's metrics is meant, or its scale, is not known.
    """
    if _is_lmms(told):
        return _of_lmms(told, path, metrics), _lmms_tokens(told)
    count = told.get("visual_tokens")
    return _of_evaluate(told, path), None if count is None else float(count)


def grid_cells(told: Told) -> list[Cell]:
    """The cells of a grid of experiments: accuracies with the question, by task and seed."""
    sizes = {decoder["name"]: decoder["params"] / 1e9 for decoder in told["decoders"]}
    return [
        Cell(
            number,
            sizes[cell["decoder"]],
            float(cell["visual_tokens"]),
            task,
            str(cell["seed"]),
            cell["scores"].get(task),
            None,
        )
        for number, cell in enumerate(told["cells"], start=1)
        if cell["query"] == "question"
        for task in told["tasks"]
    ]


def _is_lmms(told: Told) -> bool:
    return {"results", "config"} <= told.keys()


def _of_evaluate(told: Told, path: Path) -> list[Score]:
    if "tasks" not in told:
        name = Path(str(told.get("data", "data"))).name
        return [Score(name, told["accuracy"], told.get("standard_error"))]
    found = []
    for name, task in told["tasks"].items():
        if task.get("headline") is None:
            raise UserError(f"{path} has no score of {name}, which a server scores; evaluate without it.")
        metric, top = task["metrics"][task["headline"]], _TOPS.get(name, 100.0)
        spread = metric.get("standard_error")
        found.append(Score(name, metric["value"] / top, None if spread is None else spread / top))
    return found


def _of_lmms(told: Told, path: Path, metrics: Mapping[str, str]) -> list[Score]:
    found = []
    for task, values in told["results"].items():
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
        if told.get("higher_is_better", {}).get(task, {}).get(metric) is False:
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


def _lmms_tokens(told: Told) -> float | None:
    """V, if the model's arguments name it as `visual_tokens`."""
    arguments = told["config"].get("model_args")
    if isinstance(arguments, Mapping):
        count = arguments.get("visual_tokens")
        return None if count is None else float(count)
    found = _COUNT.search(str(arguments or ""))
    return None if found is None else float(found[1])
