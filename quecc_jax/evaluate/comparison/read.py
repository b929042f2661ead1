"""Answers that `launch.evaluate` and grids kept, read to be compared: of benchmarks and of data sets alike."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quecc_jax.errors import UserError
from quecc_jax.evaluate.kept_answers import ANSWERS, Settings, finished_answers
from quecc_jax.evaluate.results import Results
from quecc_jax.evaluate.score import RowAnswer, agree
from quecc_jax.records import json_value, of_form, read_record

RESULTS = "results.json"
_ASKED = ("max_new_tokens", "turns", "query", "image_decoding")
"""What results.json of a data set tells of how it was asked."""
_MODELS = ("task", "model", "visual_tokens")
"""Settings that may differ between runs that are compared; the others are said where they do."""


class Asked(NamedTuple):
    """A question, equal in every run that is compared."""

    id: Any
    text: str
    truth: Any
    image: str
    """The same for all questions about one picture; "" where the answers do not tell."""
    kinds: tuple[str, ...]
    turn: int
    """Of a conversation, from 1."""


class Scored(NamedTuple):
    """One model's answers to one benchmark."""

    questions: tuple[Asked, ...]
    scores: np.ndarray
    """float64 [Q], 0..1."""
    scorer: str
    settings: Settings
    """Under which they were asked, besides those of the model."""
    headline: str
    """The benchmark's own metric, as "f1 85.9"; "" for a data set."""


@dataclasses.dataclass(frozen=True)
class Answered:
    """What one folder holds."""

    name: str
    folder: Path
    visual_tokens: int
    tasks: Mapping[str, Scored]
    unscored: tuple[str, ...] = ()
    """Benchmarks whose truth is not public."""


def read_all(folders: Sequence[Path]) -> list[Answered]:
    """The answers of folders, named by the last parts of their paths that tell them apart.

    Raises:
      UserError: one is no folder of `launch.evaluate`, is unfinished or damaged, or is named twice.
    """
    whole = [folder.resolve() for folder in folders]
    for folder in whole:
        if whole.count(folder) > 1:
            raise UserError(f"{folder} is named twice; name each folder of answers once")
    parts = 1
    while len({path.parts[-parts:] for path in whole}) < len(whole):
        parts += 1
    return [
        dataclasses.replace(read(folder), name="/".join(path.parts[-parts:]))
        for folder, path in zip(folders, whole, strict=True)
    ]


def read(folder: Path) -> Answered:
    """The answers of one folder, `--out` of `launch.evaluate` or one of a grid's `answers`.

    Raises:
      UserError: it is none, is unfinished, or holds a damaged line.
    """
    advice = "name a folder that launch.evaluate has written to its end"
    try:
        results = read_record(folder / RESULTS, dict[str, Any], advice)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} has no {RESULTS}; {advice}") from None
    if "tasks" not in results:
        return _data_set(folder, results)
    told = of_form(results, Results, str(folder / RESULTS), advice)
    tasks, unscored = dict[str, Scored](), list[str]()
    for name, task in told["tasks"].items():
        settings, answers = finished_answers(folder / name, task["questions"])
        known = [one for one in answers if one.get("score") is not None]
        if not known:
            unscored.append(name)
            continue
        questions = (
            Asked(
                one["id"],
                one["question"],
                one.get("truth"),
                _image(one.get("images", ())),
                tuple(one.get("kinds", ())),
                1,
            )
            for one in known
        )
        head = task["headline"]
        tasks[name] = Scored(
            tuple(questions),
            np.array([one["score"] for one in known], np.float64),
            task["scorer"]["name"],
            {key: value for key, value in settings.items() if key not in _MODELS},
            "" if head is None else f"{head} {task['metrics'][head]['value']:.1f}",
        )
    return Answered(folder.name, folder, told["visual_tokens"], tasks, tuple(unscored))


def _data_set(folder: Path, results: Mapping[str, Any]) -> Answered:
    """The answers to the rows of a data set; kinds such as "mosaic/cell" tell its tasks."""
    path, advice = folder / ANSWERS, "score the run anew with launch.evaluate"
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        raise UserError(f"{path} cannot be read; {advice}") from None
    groups: dict[str, list[tuple[Asked, float]]] = {}
    for number, line in enumerate(lines[:-1], 1):
        name = f"{path}, line {number}"
        one = of_form(json_value(line, name, advice), RowAnswer, name, advice)
        task, slash, kind = one["kind"].partition("/")
        image = "" if one.get("image") is None else json.dumps(one["image"])
        asked = Asked(
            one["id"], one["question"], one["truth"], image, (kind if slash else task,), one.get("turn", 1)
        )
        right = float(agree(one["prediction"], one["truth"]))
        groups.setdefault(task if slash else Path(str(results.get("data"))).stem, []).append((asked, right))
    said = sum(map(len, groups.values()))
    if lines[-1] or said != results.get("questions"):
        raise UserError(f"{path} holds {said} answers of {results.get('questions')}; {advice}")
    settings = {key: results[key] for key in _ASKED if key in results}
    tasks = {
        task: Scored(
            tuple(asked for asked, _ in pairs),
            np.array([right for _, right in pairs], np.float64),
            "exact",
            settings,
            "",
        )
        for task, pairs in groups.items()
    }
    return Answered(folder.name, folder, results.get("visual_tokens", 0), tasks)


def _image(images: Iterable[str]) -> str:
    """What answers about the same images share; "" where a version before this one left them in the data file."""
    named = list(images)
    return "" if "in the data file" in named else "\n".join(named)


def common_tasks(runs: Sequence[Answered]) -> list[str]:
    """Benchmarks that all have answered, checked to be the same questions.

    Raises:
      UserError: there is none, or two runs answer other questions, by other truths or scorers.
    """
    first = runs[0]
    names = [name for name in first.tasks if all(name in run.tasks for run in runs)]
    if not names:
        told = "; ".join(f"{run.name}: {', '.join((*run.tasks, *run.unscored)) or 'none'}" for run in runs)
        raise UserError(f"no scored benchmark is answered by all of them ({told}); evaluate them on the same")
    for name in names:
        for other in runs[1:]:
            _check_same(name, first, other)
    return names


def _check_same(task: str, a: Answered, b: Answered) -> None:
    mine, theirs = a.tasks[task], b.tasks[task]
    who = f"{a.name} and {b.name}"
    if mine.scorer != theirs.scorer:
        raise UserError(
            f"{who} read the answers to {task} by other rules ({mine.scorer}, {theirs.scorer}); evaluate one of "
            f"them again with --scorer {task}={mine.scorer}"
        )
    if len(mine.questions) != len(theirs.questions):
        raise UserError(
            f"{a.name} answers {len(mine.questions)} questions of {task} and {b.name} {len(theirs.questions)}; "
            "evaluate both on the same file, with the same --limit"
        )
    for number, (one, other) in enumerate(zip(mine.questions, theirs.questions, strict=True), 1):
        if (one.id, one.text, one.turn) != (other.id, other.text, other.turn):
            raise UserError(
                f"{who} answer other questions of {task}: question {number} is {one.id} {one.text!r} in one and "
                f"{other.id} {other.text!r} in the other; evaluate both on the same file"
            )
        if one.truth != other.truth:
            raise UserError(
                f"{who} hold other truths of {task}: question {number} ({one.id}) is answered by {one.truth!r} in "
                f"one and {other.truth!r} in the other; evaluate both on the same file"
            )


def notes(runs: Sequence[Answered], tasks: Sequence[str]) -> list[str]:
    """What a reader has to know of the runs: what is left out, and settings that differ besides the model."""
    said = []
    for run in runs:
        left = [name for name in run.tasks if name not in tasks]
        if left:
            said.append(f"{run.name} alone, or not all others, answered {', '.join(left)}; left out.")
        if run.unscored:
            said.append(f"{', '.join(run.unscored)} of {run.name} is scored by a server; left out.")
    for task in tasks:
        if not all(question.image for question in runs[0].tasks[task].questions):
            said.append(
                f"{task}: some answers do not tell their image, so questions about one image count as "
                "independent there; score the first run anew to change that."
            )
        told = [run.tasks[task].settings for run in runs]
        for key in dict.fromkeys(key for settings in told for key in settings):
            values = [settings.get(key) for settings in told]
            if len(set(values)) > 1:
                listed = ", ".join(f"{run.name}: {value}" for run, value in zip(runs, values, strict=True))
                said.append(f"{task} was asked with other settings of {key} ({listed}).")
    return said
