"""Statistics of a comparison's `results.json`: scores by compressor and V, differences with their error."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from quecc_jax.experiments.summary import Score, pooled

Rows = list[Mapping[str, Any]]
Key = tuple[str, int]
"""(label, V)"""


class Difference(NamedTuple):
    """One compressor's accuracy less another's, over seeds."""

    gain: float
    error: float
    """Standard error of `gain`: that over seeds, or that of the test questions where it is larger."""
    p: float
    """Welch's t test over seeds, two-sided; it knows nothing of the test questions. NaN for one seed."""

    @property
    def errors(self) -> float:
        """The difference in standard errors."""
        return self.gain / self.error if self.error else math.copysign(math.inf, self.gain)


def runs(rows: Rows, kind: str, part: str = "") -> dict[Key, list[tuple[float, int]]]:
    """(accuracy, questions) of each seed, for a task ("mosaic") or a kind of question ("mosaic/cell")."""
    found: dict[Key, list[tuple[float, int]]] = {}
    for row in rows:
        if part and row["part"] != part:
            continue
        share = row["kinds"][kind] if "/" in kind else (row["scores"][kind], row["counts"][kind])
        found.setdefault((row["label"], row["visual_tokens"]), []).append((share[0], share[1]))
    return found


def scores(rows: Rows, kind: str, part: str = "") -> dict[Key, Score]:
    """Mean and standard error over seeds of every (label, V)."""
    return {key: pooled(entries) for key, entries in runs(rows, kind, part).items()}


def difference(rows: Rows, kind: str, a: Key, b: Key) -> Difference:
    """Accuracy of `a` less that of `b`; KeyError where one of them was not trained."""
    both = runs(rows, kind)
    first, second = (pooled(both[key]) for key in (a, b))
    seeds = [[share for share, _ in both[key]] for key in (a, b)]
    p = float(stats.ttest_ind(*seeds, equal_var=False).pvalue) if min(map(len, seeds)) > 1 else math.nan
    error = math.hypot(first.cautious, second.cautious)
    return Difference(first.mean - second.mean, error, p)


def flops(rows: Rows, task: str) -> dict[Key, float]:
    """Mean FLOPs of answering one of a task's questions, tower included."""
    found: dict[Key, list[float]] = {}
    for row in rows:
        key = row["label"], row["visual_tokens"]
        found.setdefault(key, []).append(row["flops_per_question"][task])
    return {key: float(np.mean(values)) for key, values in found.items()}


def order(rows: Rows, part: str = "") -> list[str]:
    """Labels in the order of the plan, which is that of the rows."""
    return list(dict.fromkeys(row["label"] for row in rows if not part or row["part"] == part))
