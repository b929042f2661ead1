"""Scores of predicted answers."""

import math
from collections.abc import Iterable, Sequence
from typing import TypedDict

from quecc_jax.evaluate.answers import Answer


def is_exact(answer: Answer) -> bool:
    """Whether prediction and truth agree up to case and spacing."""
    return answer.prediction.lower().split() == answer.truth.lower().split()


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
