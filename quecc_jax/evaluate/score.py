"""Scores of predicted answers."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

from quecc_jax.evaluate.answers import Answer


def is_exact(answer: Answer) -> bool:
    """Whether prediction and truth agree up to case and spacing."""
    return answer.prediction.lower().split() == answer.truth.lower().split()


def accuracy(answers: Iterable[Answer], key: Callable[[Answer], str]) -> dict[str, tuple[float, int]]:
    """(share of exact answers, number of questions) per group, e.g. per row kind."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        groups[key(answer)].append(is_exact(answer))
    return {name: (sum(hits) / len(hits), len(hits)) for name, hits in sorted(groups.items())}


def standard_error(share: float, count: int) -> float:
    """Binomial standard error of a share of `count` answers."""
    return math.sqrt(share * (1.0 - share) / count)
