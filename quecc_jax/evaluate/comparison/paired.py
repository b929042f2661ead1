"""Two models' answers to the same questions: how far apart they are, and whether chance could do it.

Questions about one image are answered alike, so replicates of the bootstrap draw whole images (Efron and Tibshirani
1993, chapter 8). All models answer the questions of one replicate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from quecc_jax.evaluate.bootstrap import deviation, ratio, resampled_sums


class Means(NamedTuple):
    """Mean scores of M models on some questions."""

    values: np.ndarray
    """float64 [M], 0..1."""
    replicates: np.ndarray
    """float64 [R, M]; NaN where a replicate has none of these questions."""
    questions: int


class Estimate(NamedTuple):
    """A number, its standard error and 95 % interval over replicates; NaN where it is undefined."""

    value: float
    error: float
    low: float
    high: float


class Discordant(NamedTuple):
    """Questions that one of two models alone answers rightly (McNemar 1947)."""

    first_alone: int
    other_alone: int
    p: float
    """Exact, two-sided; it takes questions as independent."""


def clusters(images: Sequence[str]) -> np.ndarray:
    """int [Q]: one number for all questions about one image; those whose image is unknown ("") have their own."""
    names = [("image", image) if image else ("question", number) for number, image in enumerate(images)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def means(
    scores: np.ndarray,
    groups: np.ndarray,
    resamples: int,
    seed: Sequence[int],
    chosen: np.ndarray | None = None,
) -> Means:
    """Mean scores and their replicates.

    Args:
      scores: float64 [M, Q] of M models.
      groups: int [Q], see `clusters`.
      seed: equal seeds and groups draw the same images, whichever questions are chosen.
      chosen: bool [Q]; all questions without it.
    """
    kept = np.ones(len(groups), bool) if chosen is None else chosen
    columns = np.concatenate([scores * kept, kept[None]]).astype(np.float64)
    table = np.stack([np.bincount(groups, column) for column in columns], axis=1)
    sums, total = resampled_sums(table, resamples, seed), columns.sum(axis=1)
    values, replicates = ratio(total[:-1], total[-1]), ratio(sums[:, :-1], sums[:, -1:])
    return Means(values, replicates, int(kept.sum()))


def estimate(value: float, replicates: np.ndarray) -> Estimate:
    """With the standard deviation and the percentiles 2.5 and 97.5 of replicates float64 [R]."""
    known = replicates[np.isfinite(replicates)]
    if len(known) < 2:
        return Estimate(float(value), math.nan, math.nan, math.nan)
    low, high = np.percentile(known, [2.5, 97.5])
    return Estimate(float(value), deviation(known), float(low), float(high))


def two_sided_p(differences: np.ndarray) -> float:
    """Twice the share of replicates on the other side of zero, at least 2 / (R + 1) (Davison and Hinkley 1997,
    section 4.2); 1 where the models never differ."""
    count = len(differences) + 1
    below, above = (1 + np.count_nonzero(side) for side in (differences <= 0, differences >= 0))
    return float(min(1.0, 2 * min(below, above) / count))


def discordant(first: np.ndarray, other: np.ndarray) -> Discordant | None:
    """Of scores float64 [Q]; None where one is neither right nor wrong."""
    if not np.isin([first, other], (0.0, 1.0)).all():
        return None
    mine, theirs = int(np.sum(first > other)), int(np.sum(other > first))
    p = float(binomtest(mine, mine + theirs).pvalue) if mine + theirs else 1.0
    return Discordant(mine, theirs, p)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in their order."""
    order = np.argsort(values, kind="stable")
    steps = (len(values) - np.arange(len(values))) * np.asarray(values, np.float64)[order]
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]
