"""How often 95 % intervals hold the truth, on random laws with noise.

    python -m benchmarks.scaling_coverage --laws 1000

Each law has A in 0.2-0.8, alpha in 0.02-0.3, beta in 0.01-0.2, D = 0 in a quarter of the cases and
else in 0-0.3, all uniform; its error on the published grid of 4 sizes x 7 token counts gets normal
noise of one standard deviation per law, log-uniform in 0.001-0.01. The law is fitted to each, and
three kinds of intervals are compared with the truth: the profile likelihood of `scaling fit`, the
percentiles of a residual bootstrap, and estimate +- t x linear standard error. The errors at two
points that were not measured, 14B with 256 tokens and 2.5B with 10, are judged in the same way.

    python -m benchmarks.scaling_coverage --laws 1000 --misfit 2

lets the scores deviate from the law itself, normally, by so many standard errors of their noise: each cell by its own,
or with `--misfit-by size` all cells of a size alike. A fourth kind of intervals then believes the standard errors.
"""

import os
import time
from typing import Literal, NamedTuple

import numpy as np
import tyro
from scipy.special import ndtri, stdtrit

from scaling.fit import NON_NEGATIVE
from scaling.intervals import (
    Problems,
    constant_intervals,
    error_intervals,
    error_standard_errors,
    standard_errors,
)
from scaling.law import PARAMETERS, Params, error
from scaling.solver import Cells, solve_many

SIZES, COUNTS = (0.5, 1.8, 4.0, 7.0), (1.0, 4.0, 16.0, 36.0, 64.0, 144.0, 576.0)
UNSEEN = ((14.0, 256.0), (2.5, 10.0))


class Laws(NamedTuple):
    """K random laws (leaves [K]) and their noisy tables."""

    truth: Params
    cells: Cells
    noise: np.ndarray
    """Standard error of one score, [K]."""

    @property
    def is_floorless(self) -> np.ndarray:
        """bool [K], where D = 0."""
        return np.asarray(self.truth.D == 0)


def random_laws(
    count: int, seed: int, misfit: float = 0.0, misfit_by: Literal["cell", "size"] = "cell"
) -> Laws:
    """Draws laws and tables; cells leaves [count, 28]. `misfit` is in standard errors."""
    rng = np.random.default_rng(seed)
    floor = np.where(rng.random(count) < 0.25, 0.0, rng.uniform(0, 0.3, count))
    truth = Params(
        rng.uniform(0.2, 0.8, count), rng.uniform(0.02, 0.3, count), rng.uniform(0.01, 0.2, count), floor
    )
    n, t = (a.ravel() for a in np.meshgrid(SIZES, COUNTS, indexing="ij"))
    noise = np.exp(rng.uniform(np.log(0.001), np.log(0.01), count))
    clean = error(Params(*(leaf[:, None] for leaf in truth)), n, t)
    y = clean + noise[:, None] * rng.normal(size=clean.shape)
    if misfit:
        own = rng.normal(size=(count, len(SIZES), len(COUNTS) if misfit_by == "cell" else 1))
        y += (
            misfit
            * noise[:, None]
            * np.broadcast_to(own, (count, len(SIZES), len(COUNTS))).reshape(count, -1)
        )
    return Laws(truth, Cells(*np.broadcast_arrays(n, t, y, 1.0)), noise)


def fitted(laws: Laws) -> Problems:
    """Every table fitted from four starts, the best kept."""
    count = len(laws.truth.A)
    starts = [(0.5, 0.1, 0.05, 0.05), (0.3, 0.2, 0.1, 0.2), (0.8, 0.03, 0.02, 0.0), (0.6, 0.3, 0.2, 0.1)]
    each = [solve_many(Params(*(np.full(count, x) for x in s)), laws.cells, *NON_NEGATIVE) for s in starts]
    best = np.argmin([found.objective for found in each], axis=0), np.arange(count)
    params = Params(*(np.stack(leaves)[best] for leaves in zip(*(f.params for f in each), strict=True)))
    objective = np.stack([found.objective for found in each])[best]
    return Problems(laws.cells, params, objective, NON_NEGATIVE, len(SIZES) * len(COUNTS) - 4)


def truths(laws: Laws) -> dict[str, np.ndarray]:
    """What intervals are judged by, each [K]: the constants and the errors at unseen points."""
    ahead = {point_name(point): error(laws.truth, *point) for point in UNSEEN}
    return {**laws.truth._asdict(), **ahead}


def point_name(point: tuple[float, float]) -> str:
    """An unseen point in words."""
    return f"error at {point[0]:g}B, T = {point[1]:g}"


def profile_method(problems: Problems) -> dict[str, np.ndarray]:
    """The intervals of `scaling fit`, [K, 2]."""
    ahead = error_intervals(problems, *np.transpose(UNSEEN))
    return constant_intervals(problems) | {point_name(point): ahead[:, i] for i, point in enumerate(UNSEEN)}


def linear_method(problems: Problems, variance: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Estimate +- t x standard error, cut at the bounds, [K, 2]; a known variance of one score, [K], in place of that
    of the residuals."""
    times = np.full(len(problems.objective), float(stdtrit(problems.dof, 0.975)))
    if variance is not None:
        times = float(ndtri(0.975)) * np.sqrt(variance * problems.dof / problems.objective)
    half = times[:, None] * standard_errors(problems)
    p = problems.params
    found = {"A": p.A[:, None] * np.exp(np.stack([-half[:, 0], half[:, 0]], axis=1))}
    for i, name in enumerate(PARAMETERS[1:], 1):
        value = getattr(p, name)
        found[name] = np.stack([np.maximum(value - half[:, i], 0), value + half[:, i]], axis=1)
    ahead = times[:, None] * error_standard_errors(problems, *np.transpose(UNSEEN))
    for i, point in enumerate(UNSEEN):
        value = error(p, *point)
        found[point_name(point)] = np.stack([value - ahead[:, i], value + ahead[:, i]], axis=1)
    return found


def bootstrap_method(problems: Problems, refits: int, seed: int) -> dict[str, np.ndarray]:
    """Percentiles of a residual bootstrap with residuals widened by sqrt(n / (n - p)), [K, 2]."""
    rng = np.random.default_rng(seed)
    count, width = problems.cells.y.shape
    p = Params(*(np.asarray(leaf)[:, None] for leaf in problems.params))
    model = error(p, problems.cells.n, problems.cells.t)
    residual = problems.cells.y - model
    residual = (residual - residual.mean(axis=1, keepdims=True)) * np.sqrt(width / problems.dof)
    draws = rng.integers(width, size=(count, refits, width))
    y = model[:, None] + np.take_along_axis(np.asarray(residual)[:, None], draws, axis=2)
    cells = Cells(*(np.repeat(leaf, refits, axis=0) for leaf in problems.cells))
    start = Params(*(np.repeat(leaf, refits) for leaf in problems.params))
    samples = solve_many(start, cells._replace(y=y.reshape(-1, width)), *problems.bounds).params

    def ends(values: np.ndarray) -> np.ndarray:
        return np.percentile(values.reshape(count, refits), [2.5, 97.5], axis=1).T

    found = {name: ends(leaf) for name, leaf in samples._asdict().items()}
    return found | {point_name(point): ends(error(samples, *point)) for point in UNSEEN}


def coverage(intervals: dict[str, np.ndarray], laws: Laws) -> dict[str, np.ndarray]:
    """bool [K] per quantity: the interval holds the truth."""
    known = truths(laws)
    return {name: (e[:, 0] <= known[name]) & (known[name] <= e[:, 1]) for name, e in intervals.items()}


def main(
    laws: int = 1000,
    refits: int = 400,
    seed: int = 0,
    misfit: float = 0.0,
    misfit_by: Literal["cell", "size"] = "cell",
) -> None:
    """How often 95 % intervals hold the truth, on random laws with noise.

    Args:
      laws: how many.
      refits: of each law, for the bootstrap's column.
      seed: of the laws.
      misfit: by how many standard errors the scores deviate from the law, beside their noise.
      misfit_by: whether each cell deviates by itself, or each size as a whole.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    drawn = random_laws(laws, seed, misfit, misfit_by)
    problems = fitted(drawn)
    methods = {
        "profile likelihood": lambda: profile_method(problems),
        "bootstrap percentiles": lambda: bootstrap_method(problems, refits, seed),
        "+- t standard errors": lambda: linear_method(problems),
    }
    if misfit:
        methods["+- 1.96 standard errors, believed"] = lambda: linear_method(problems, drawn.noise**2)
    floorless = drawn.is_floorless
    print(f"{laws} laws, {floorless.sum()} with D = 0; share of 95 % intervals that hold the truth")
    for method, run in methods.items():
        began = time.perf_counter()
        held = coverage(run(), drawn)
        print(f"\n{method} ({time.perf_counter() - began:.1f} s)\n{'':24}   all   D = 0   D > 0")
        for name, inside in held.items():
            shares = (inside, inside[floorless], inside[~floorless])
            print(f"{name:24} {' '.join(f'{share.mean():6.1%}' for share in shares)}")
        constants = np.concatenate([held[name] for name in PARAMETERS])
        print(f"{'the four constants':24} {constants.mean():6.1%}")


if __name__ == "__main__":
    tyro.cli(main)
