"""Models side by side on the same questions: what `python -m launch.compare A B` tells."""

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quecc_jax.errors import UserError
from quecc_jax.evaluate.comparison.paired import (
    Estimate,
    Means,
    clusters,
    discordant,
    estimate,
    holm,
    means,
    two_sided_p,
)
from quecc_jax.evaluate.comparison.read import Answered, Asked, common_tasks, notes, read_all
from quecc_jax.evaluate.comparison.record import Against, Compared, Comparison, Number, Part


class _Names(NamedTuple):
    """The parts that models play, by name, in the order of `models`."""

    models: list[str]
    """The first is what others are compared with."""
    rivals: list[str]
    uncompressed: str | None
    shrunk: list[tuple[str, int]]
    """Models of shrunk images and their V, ascending."""


def compare(
    folders: Sequence[Path],
    uncompressed: Path | None = None,
    downsample: Sequence[Path] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares answers to the same questions.

    Args:
      folders: of the models, which are compared with the first of them.
      uncompressed: of the model that tells what each keeps (retention).
      downsample: of models that see a shrunk image; the least V at which one answers a question is its fineness.
      resamples: replicates of the bootstrap.

    Raises:
      UserError: fewer than two folders, or answers that cannot be compared, see `read`.
    """
    others = [*([uncompressed] if uncompressed else []), *downsample]
    known = {folder.resolve() for folder in folders}
    runs = read_all([*folders, *dict.fromkeys(path for path in others if path.resolve() not in known)])
    if len(runs) < 2:
        raise UserError(f"{folders[0]} alone is nothing to compare with; name another folder of answers")
    by_folder = {run.folder.resolve(): run for run in runs}
    shrunk = [by_folder[path.resolve()] for path in downsample]
    names = _Names(
        [run.name for run in runs],
        [run.name for run in runs[1 : len(folders)]],
        by_folder[uncompressed.resolve()].name if uncompressed else None,
        sorted(((run.name, run.visual_tokens) for run in shrunk), key=lambda pair: pair[1]),
    )
    tasks = common_tasks(runs)
    drawn = {task: _drawn(task, runs, resamples, seed) for task in tasks}
    record: Comparison = {
        "models": [
            {"name": run.name, "folder": str(run.folder), "visual_tokens": run.visual_tokens} for run in runs
        ],
        "first": names.models[0],
        "uncompressed": names.uncompressed,
        "downsample": [name for name, _ in names.shrunk],
        "resamples": resamples,
        "seed": seed,
        "tasks": {task: _compared(task, runs, names, drawn[task]) for task in tasks},
        "notes": notes(runs, tasks),
    }
    if len(tasks) > 1:
        every = [draw() for draw in drawn.values()]
        record["overall"] = _against(names, every)
        record["overall_retention"] = _retention(names, every)
    _correct(record)
    return record


Draw = Callable[..., Means]
"""Means over all questions of a benchmark, or over those of a mask; all of the same replicates."""


def _drawn(task: str, runs: Sequence[Answered], resamples: int, seed: int) -> Draw:
    scores = np.stack([run.tasks[task].scores for run in runs])
    groups = clusters([question.image for question in runs[0].tasks[task].questions])
    # Benchmarks draw apart from each other: the mean of their replicates is then one of their mean.
    key = [seed, zlib.crc32(task.encode())]
    return lambda chosen=None: means(scores, groups, resamples, key, chosen)


def _compared(task: str, runs: Sequence[Answered], names: _Names, draw: Draw) -> Compared:
    first = runs[0].tasks[task]
    whole, questions = draw(), first.questions
    against = _against(names, [whole])
    for one in against:
        rival = runs[names.models.index(one["model"])].tasks[task]
        if found := discordant(first.scores, rival.scores):
            one |= {"first_alone": found.first_alone, "model_alone": found.other_alone, "mcnemar_p": found.p}
    by_model = {run.name: run.tasks[task] for run in runs}
    return {
        "questions": len(questions),
        "images": int(clusters([question.image for question in questions]).max()) + 1,
        "scorer": first.scorer,
        "headlines": {name: scored.headline for name, scored in by_model.items() if scored.headline},
        "scores": _scores(names, whole),
        "against": against,
        "retention": _retention(names, [whole]),
        "fineness": _fineness(names, {name: one.scores for name, one in by_model.items()}, draw),
        "turns": _parts(names, questions, lambda one: (f"turn {one.turn}",), draw),
        "kinds": _parts(names, questions, lambda one: one.kinds, draw),
    }


def _against(names: _Names, sampled: Sequence[Means]) -> list[Against]:
    """Every rival less the first, on the mean of benchmarks."""
    found: list[Against] = []
    for rival in names.rivals:
        number = names.models.index(rival)
        value = float(np.mean([one.values[number] - one.values[0] for one in sampled]))
        moved = np.mean([one.replicates[:, number] - one.replicates[:, 0] for one in sampled], axis=0)
        number_of = _number(estimate(value, moved))
        found.append(
            {"model": rival, "difference": number_of, "p": two_sided_p(moved), "p_corrected": math.nan}
        )
    return found


def _retention(names: _Names, sampled: Sequence[Means]) -> dict[str, Number]:
    """Each model's score over the uncompressed one's, in percent, on the mean of benchmarks."""
    if names.uncompressed is None:
        return {}
    top = names.models.index(names.uncompressed)
    kept = {}
    with np.errstate(divide="ignore", invalid="ignore"):
        for number, name in enumerate(names.models):
            if number != top:
                value = float(np.mean([one.values[number] / one.values[top] for one in sampled]))
                moved = [one.replicates[:, number] / one.replicates[:, top] for one in sampled]
                kept[name] = _number(estimate(value, np.mean(moved, axis=0)))
    return kept


def _scores(names: _Names, sampled: Means) -> dict[str, Number]:
    return {
        name: _number(estimate(sampled.values[number], sampled.replicates[:, number]))
        for number, name in enumerate(names.models)
    }


def _part(names: _Names, name: str, sampled: Means) -> Part:
    return {
        "name": name,
        "questions": sampled.questions,
        "scores": _scores(names, sampled),
        "differences": {one["model"]: one["difference"] for one in _against(names, [sampled])},
    }


def _fineness(names: _Names, scores: dict[str, np.ndarray], draw: Draw) -> list[Part]:
    """Questions by the fewest tokens of a shrunk image that answer them fully; those that none answers last."""
    left = np.ones(len(scores[names.models[0]]), bool)
    parts = []
    for model, v in names.shrunk:
        now = left & (scores[model] >= 1)
        left &= ~now
        parts.append((f"a shrunk image of {v} token{'s' * (v > 1)} answers", now))
    if parts:
        parts.append(("no shrunk image answers", left))
    return [_part(names, name, draw(chosen)) for name, chosen in parts if chosen.any()]


def _parts(
    names: _Names, questions: Sequence[Asked], of: Callable[[Asked], tuple[str, ...]], draw: Draw
) -> list[Part]:
    """The questions of each name; nothing where all have one."""
    told = [of(question) for question in questions]
    found = dict.fromkeys(name for every in told for name in every)
    if len(found) < 2:
        return []
    return [_part(names, name, draw(np.array([name in every for every in told]))) for name in found]


def _correct(record: Comparison) -> None:
    """Fills in the corrected p values: Holm's over every benchmark and model, for each test on its own."""
    against = [one for task in record["tasks"].values() for one in task["against"]]
    for one, corrected in zip(against, holm([one["p"] for one in against]), strict=True):
        one["p_corrected"] = corrected
    tested = [one for one in against if "mcnemar_p" in one]
    for one, corrected in zip(tested, holm([one["mcnemar_p"] for one in tested]), strict=True):
        one["mcnemar_p_corrected"] = corrected
    overall = record.get("overall", [])
    for one, corrected in zip(overall, holm([one["p"] for one in overall]), strict=True):
        one["p_corrected"] = corrected


def _number(found: Estimate) -> Number:
    """In percent, as JSON holds it."""
    value, error, low, high = (None if math.isnan(x) or math.isinf(x) else 100 * x for x in found)
    return {"value": value, "standard_error": error, "low": low, "high": high}
