"""Metrics from sums, and their standard errors by resampling.

What a benchmark reports is a function of sums over independent units: right answers and questions,
true and false positives. A unit is what was drawn together, such as the two questions of an MME
image. So a bootstrap replicate needs only the units' sums with other multiplicities.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

Tally = Mapping[str, float]
"""What one unit adds to each sum; a sum that it does not name gets nothing."""
Totals = Mapping[str, float | np.ndarray]
"""By name: sums over units, or metrics made of them; numbers, or float64 [R] for R replicates."""
Metrics = Callable[[Totals], Totals]
"""From sums to metrics by name, elementwise over replicates."""


def ratio(part: ArrayLike, whole: ArrayLike, empty: float = np.nan) -> np.ndarray:
    """part / whole elementwise, `empty` where whole is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.where(whole == 0, empty, part / np.where(whole == 0, 1.0, whole))


def evaluate(
    tallies: Sequence[Tally], metrics: Metrics, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """(value, standard error) of every metric.

    The error is the standard deviation over `resamples` draws of as many units with replacement (Efron
    and Tibshirani 1993, chapter 6). Replicates in which a metric is undefined are left out.

    Args:
      tallies: one for each independent unit.
      metrics: see `Metrics`.
      resamples: replicates R.
      seed: of the draws; equal tallies and seed give equal errors.
    """
    if not tallies:
        return {}
    names = sorted({name for tally in tallies for name in tally})
    table = np.array([[tally.get(name, 0.0) for name in names] for tally in tallies], np.float64)
    values = metrics(dict(zip(names, table.sum(axis=0), strict=True)))
    replicates = metrics(dict(zip(names, resampled_sums(table, resamples, seed).T, strict=True)))
    return {name: (float(value), deviation(replicates[name])) for name, value in values.items()}


def resampled_sums(table: np.ndarray, resamples: int, seed: int | Sequence[int]) -> np.ndarray:
    """Sums over as many units drawn with replacement.

    Args:
      table: float64 [units, sums], what each unit adds to each sum.
      resamples: replicates R.

    Returns:
      float64 [R, sums].
    """
    rng, units = np.random.default_rng(seed), len(table)
    sums = np.empty((resamples, table.shape[1]))
    for replicate in range(resamples):
        times = np.bincount(rng.integers(0, units, units), minlength=units)
        sums[replicate] = times @ table
    return sums


def deviation(values: ArrayLike) -> float:
    """Sample standard deviation of the finite ones; NaN of fewer than two."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")
