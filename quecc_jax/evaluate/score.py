"""Scores of predicted answers."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from quecc_jax.evaluate.answers import Answer
from quecc_jax.paths import write_text
from quecc_jax.records import sealed, write_record


class RowAnswer(TypedDict):
    """A line of the answers.jsonl of a data set."""

    id: Any
    kind: str
    question: str
    prediction: str
    truth: str
    image: NotRequired[Any]
    """The row's reference to its image or images, if it has any."""
    turn: NotRequired[int]
    """Of the row's conversation, from 1."""


def agree(prediction: str, truth: str) -> bool:
    """Whether two answers are the same up to case and spacing."""
    return prediction.lower().split() == truth.lower().split()


def is_exact(answer: Answer) -> bool:
    """Whether prediction and truth agree."""
    return agree(answer.prediction, answer.truth)


class Accuracy(TypedDict):
    """The share of exact answers, as results.json holds it."""

    questions: int
    accuracy: float
    standard_error: float


def accuracy(answers: Sequence[Answer]) -> Accuracy:
    """Of one or more answers."""
    share, count = sum(map(is_exact, answers)) / len(answers), len(answers)
    return {"questions": count, "accuracy": share, "standard_error": standard_error(share, count)}


def by_kind(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """Answers by the kind of their questions, in the order of the names."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.kind, []).append(answer)
    return dict(sorted(groups.items()))


def standard_error(share: float, count: int) -> float:
    """Binomial standard error of a share of `count` answers."""
    return math.sqrt(share * (1.0 - share) / count)


def write_scored(folder: Path, answers: Sequence[Answer], about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes answers.jsonl, and what it returns as results.json: `about` them, and their scores."""
    results = {
        **about,
        **accuracy(answers),
        "cut_questions": sum(one.question_cut for one in answers),
        "kinds": {kind: accuracy(group) for kind, group in by_kind(answers).items()},
    }
    write_text(folder / "answers.jsonl", _lines(answers))
    write_record(folder / "results.json", results)
    return results


def _lines(answers: Iterable[Answer]) -> str:
    records = (
        {
            "id": one.row.get("id"),
            "kind": one.kind,
            "question": one.question,
            "prediction": one.prediction,
            "truth": one.truth,
            "image": one.row.get("image"),
            "turn": one.turn,
        }
        for one in answers
    )
    return "".join(json.dumps(sealed(record)) + "\n" for record in records)
