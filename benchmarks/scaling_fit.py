"""How fast the law is fitted, against the published method and against scipy, in one run.

    python -m benchmarks.scaling_fit

- fit: `fit_law` with 256 starts, warm, cross-check included, against scipy.optimize.least_squares from
  the same 256 starts with the same analytic Jacobian.
- grid: all 5,000,000 points of the published grid, warm, against a plain Python loop over grid points
  (the published method), measured on a random subsample of points and scaled.
- bootstrap: 10,000 refits.
- process: `python -m scaling fit` on the published table, from the start of the interpreter to its end,
  with all intervals, figures and pages; the least of several, with what its parts take.

Times are the least of several repetitions.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tyro
from scipy.optimize import least_squares

from scaling.diagnostics.bootstrap import bootstrap
from scaling.fit import NON_NEGATIVE, PUBLISHED_BOX, cells_of, fit_law, random_starts
from scaling.law import Params
from scaling.scores import published
from scaling.solver import PUBLISHED_POINTS, Cells, search_grid

STARTS, REFITS = 256, 10_000


def least_time(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls, after one that compiles."""
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def scipy_fit(cells: Cells, starts: Params) -> float:
    """The least SSE that scipy reaches from every start in turn, in the box of non-negative constants."""
    log_n, log_t, y = np.log(cells.n), np.log(cells.t), np.asarray(cells.y)

    def residual(x: np.ndarray) -> np.ndarray:
        return x[0] * np.exp(-x[1] * log_n - x[2] * log_t) + x[3] - y

    def jacobian(x: np.ndarray) -> np.ndarray:
        shape = np.exp(-x[1] * log_n - x[2] * log_t)
        return np.stack([shape, -x[0] * shape * log_n, -x[0] * shape * log_t, np.ones_like(y)], axis=1)

    ends = (np.zeros(4), np.array([np.inf, 5, 5, 1]))
    costs = [least_squares(residual, x, jacobian, ends).cost for x in np.stack(starts, axis=1)]
    return float(2 * min(costs))


def python_loop(cells: Cells, points: np.ndarray) -> float:
    """The published method: one grid point after another, one cell after another, in plain Python."""
    rows = list(zip(cells.n.tolist(), cells.t.tolist(), cells.y.tolist(), strict=True))
    best = float("inf")
    for a, alpha, beta, d in points.tolist():
        total = 0.0
        for n, t, y in rows:
            total += (a * n**-alpha * t**-beta + d - y) ** 2
        best = min(best, total)
    return best


def process_seconds(repeats: int) -> float:
    """The whole command, cold, without JAX's compilation cache."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    times = []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(repeats):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "scaling", "fit", "--scores", "general", "--out", out],
                check=True,
                capture_output=True,
                env=environment,
            )
            times.append(time.perf_counter() - began)
    return min(times)


def main(repeats: int = 5, loop_points: int = 20_000) -> None:
    """How fast the law is fitted, against the published method and against scipy.

    Args:
      repeats: runs, of which the fastest counts.
      loop_points: grid points of the plain loop.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    table = published("general")
    fit = fit_law(table)
    cells = cells_of(table, fit.law)
    starts = random_starts(cells, NON_NEGATIVE, STARTS, 0)

    ours = least_time(lambda: fit_law(table, n_starts=STARTS), 4 * repeats)
    began = time.perf_counter()
    theirs_sse = scipy_fit(cells, starts)
    theirs = time.perf_counter() - began
    print(f"fit, {STARTS} starts      {1e3 * ours:9.1f} ms   SSE {fit.sse:.6e}   (aim: 10 ms)")
    print(f"scipy, {STARTS} starts    {1e3 * theirs:9.1f} ms   SSE {theirs_sse:.6e}   {theirs / ours:.0f} x")

    grid = least_time(lambda: search_grid(cells, *PUBLISHED_BOX), repeats)
    found = search_grid(cells, *PUBLISHED_BOX)
    axes = [np.linspace(*ends) for ends in zip(*PUBLISHED_BOX, PUBLISHED_POINTS, strict=True)]
    rng = np.random.default_rng(0)
    sample = np.stack([rng.choice(axis, loop_points) for axis in axes], axis=1)
    began = time.perf_counter()
    python_loop(cells, sample)
    loop = (time.perf_counter() - began) * found.n_points / loop_points
    print(f"grid, {found.n_points:,} points {grid:7.3f} s    SSE {found.objective:.6e}   (aim: 1 s)")
    ratios = f"{loop / grid:.0f} x the grid, {loop / ours:.0f} x the fit"
    print(f"plain loop, scaled     {loop:9.1f} s    from {loop_points:,} points; {ratios}")

    refits = least_time(lambda: bootstrap(table, fit, count=REFITS), repeats)
    print(f"{REFITS:,} refits         {refits:9.3f} s    (aim: 5 s)")
    print(f"whole process, cold    {process_seconds(repeats):9.2f} s    (aim: 5 s)")


if __name__ == "__main__":
    tyro.cli(main)
