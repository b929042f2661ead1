"""What choosing the cells of a grid one by one saves: a decision's regret against the FLOPs that training took.

    python -m benchmarks.scaling_next

The truth is a known law: the fits of the published tables, and random ones (`benchmarks.scaling_coverage`). Scores on
the published grid of 4 sizes x 7 token counts get the noise that was measured there, sqrt(sse / (k - p)) of the general
table's fit and of the OCR table's; random laws take the general table's. Six cheap cells are trained first; then one
cell after another is added, each time by a fit to all so far: by `scaling next`'s expected regret (and by its
information where no cell lowers that), by its information, at random, or the cheapest first. After each cell the fitted
law chooses among 144 pairs, finer than the grid and up to 14B, for three budgets per query, and its regret is
counted under the truth, in points of error, the budgets' mean. Training costs 6 N (Q + V) FLOPs a row; shares are of
what the whole grid costs, which all four end with.
"""

import os
import time
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tyro

from benchmarks.markdown import put, table
from benchmarks.scaling_coverage import COUNTS, SIZES, random_laws
from scaling.design.proposal import propose, training_flops
from scaling.diagnostics.bootstrap import bootstrap
from scaling.fit import fit_law
from scaling.frontier import pairs
from scaling.law import Law, Params
from scaling.planner import choice_of, published_options
from scaling.saved_fit import SavedFit
from scaling.scores import published
from scaling.table import ScoreTable

Way = Literal["regret", "information", "random", "cheapest"]
WAYS: dict[Way, str] = {
    "regret": "expected regret",
    "information": "information (D-optimal)",
    "random": "at random",
    "cheapest": "cheapest first",
}
TEXT = 50.0
BUDGETS = np.geomspace(3e11, 5e12, 3)
CHOICES = np.geomspace(0.5, 14, 12), np.array([1, 2, 4, 9, 16, 25, 36, 64, 100, 144, 256, 576], np.float64)
"""Sizes and token counts that the decision is among."""
FIRST = [(n, v) for n in SIZES[:2] for v in (1.0, 16.0, 64.0)]
SHARES = (0.04, 0.06, 0.1, 0.15, 0.25, 0.4)
"""Shares of the grid's training FLOPs at which regrets are compared."""
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"


class World(NamedTuple):
    """A true law, and the noise of a score."""

    law: Law
    sigma: float


def worlds(name: str, repeats: int, seed: int) -> list[World]:
    """One for each repeat."""
    fit = fit_law(published("ocr" if name == "ocr" else "general"))
    sigma = float(np.sqrt(fit.sse / (fit.n_points - fit.n_parameters)))
    if name != "random":
        return [World(fit.law, sigma)] * repeats
    drawn = random_laws(repeats, seed).truth
    return [World(Law(Params(*map(float, params)), "V", TEXT), sigma) for params in zip(*drawn, strict=True)]


def regret_of(world: World, law: Law) -> float:
    """Of what a law chooses, in points of error, over the budgets."""
    options = published_options(*CHOICES, TEXT)
    truth = world.law.error(options.params_b, options.visual_tokens)
    lost = [truth[choice_of(law, options, b)] - truth[choice_of(world.law, options, b)] for b in BUDGETS]
    return 100 * float(np.mean(lost))


def simulate(world: World, way: Way, seed: int, until: float = max(SHARES)) -> list[tuple[float, float]]:
    """(share of the grid's training FLOPs, regret) after the first cells and after each further one, up to a share."""
    rng = np.random.default_rng(seed)
    n, v = pairs(SIZES, COUNTS)
    prices = training_flops(n, v, TEXT)
    score = 1 - world.law.error(n, v) + world.sigma * rng.normal(size=len(n))
    order = np.argsort(prices) if way == "cheapest" else rng.permutation(len(n))
    known = np.array([cell in FIRST for cell in zip(n, v, strict=True)])
    path = []
    while True:
        seen = np.where(known, score, np.nan).reshape(len(SIZES), len(COUNTS))
        grid = ScoreTable(np.array(SIZES), np.array(COUNTS), seen, query_tokens=TEXT)
        fit = fit_law(grid, n_starts=16)
        path.append((float(prices[known].sum() / prices.sum()), regret_of(world, fit.law)))
        if path[-1][0] >= until or known.all():
            return path
        if way in ("random", "cheapest"):
            known[next(k for k in order if not known[k])] = True
            continue
        samples = bootstrap(grid, fit, count=150, seed=seed)
        reach = fit.law.reach(*grid.observed_axes)
        saved = SavedFit("grid", fit.law, samples, grid.params_b, grid.visual_tokens, reach, table=grid)
        draws = 4 if way == "regret" else 1
        among = published_options(*CHOICES, TEXT)
        found = propose(saved, SIZES, COUNTS, BUDGETS.tolist(), count=1, draws=draws, seed=seed, among=among)
        steps = found.by_regret if way == "regret" and found.by_regret else found.by_information
        chosen = steps[0].cell
        known |= (n == found.params_b[chosen]) & (v == found.visual_tokens[chosen])


def full_grid(world: World, seed: int) -> float:
    """The regret of a fit to all cells, with the same scores."""
    rng = np.random.default_rng(seed)
    n, v = pairs(SIZES, COUNTS)
    score = 1 - world.law.error(n, v) + world.sigma * rng.normal(size=len(n))
    grid = ScoreTable(np.array(SIZES), np.array(COUNTS), score.reshape(len(SIZES), -1), query_tokens=TEXT)
    return regret_of(world, fit_law(grid, n_starts=16).law)


def at_shares(path: list[tuple[float, float]]) -> list[float]:
    """The regret of the last fit that each share of SHARES paid for; of the first cells where it paid for no more."""
    return [
        [regret for share, regret in path if share <= limit or share == path[0][0]][-1] for limit in SHARES
    ]


def rows_of(name: str, repeats: int, seed: int) -> list[list[str]]:
    """Median and 90th percentile of each way at each share, and of the whole grid."""
    drawn = worlds(name, repeats, seed)
    whole = np.array([full_grid(world, seed + k) for k, world in enumerate(drawn)])

    def text(values: np.ndarray) -> str:
        return "{:.3f} / {:.3f}".format(*np.percentile(values, [50, 90]))

    rows = []
    for way, words in WAYS.items():
        found = np.array([at_shares(simulate(world, way, seed + k)) for k, world in enumerate(drawn)])
        rows.append([name, words, *(text(column) for column in found.T), text(whole)])
    return rows


def main(repeats: int = 20, seed: int = 0, write: bool = False) -> None:
    """What choosing the cells of a grid one by one saves.

    Args:
      repeats: of each law, with other noise (and other random laws).
      seed: of the noise and the random laws.
      write: put the table into docs/scaling.md.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    head = ["law", "next cell by", *(f"{100 * share:g} %" for share in SHARES), "whole grid"]
    rows = []
    for name in ("general", "ocr", "random"):
        began = time.perf_counter()
        rows += rows_of(name, repeats, seed)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    made = table(head, rows)
    print(made)
    if write:
        put(PAGE, "next", made)


if __name__ == "__main__":
    tyro.cli(main)
