"""One law for several compressors: does the law depend on the compressor, and in what?

Four nested laws are fitted by least squares to the scores of all compressors c at once:

    one       A   / N^alpha   / T^beta   + D      the compressor changes nothing
    rates     A   / N^alpha   / T^beta_c + D      how fast tokens help
    tokens    A_c / N^alpha   / T^beta_c + D      what T tokens are worth, their first one included
    separate  A_c / N^alpha_c / T^beta_c + D_c    size too acts otherwise

`tokens` is the joint law: a compressor makes the tokens and leaves the language model alone, so alpha, which is the
model's, and D, what neither removes, are shared. A is not: with T = V all compressors of one A would be equally good at
V = 1, where they differ most. `rates` stands beside it for that very question.

Each law is held against the next by an F test, ((S0 - S1) / (p1 - p0)) / (S1 / (k - p1)) on (p1 - p0, k - p1) degrees
of freedom, and all of them by AICc. Scores count alike, as if all had the same noise, independent from cell to cell.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import least_squares
from scipy.special import fdtrc, stdtrit

from quecc_jax.errors import UserError
from scaling.diagnostics.rivals import aicc
from scaling.fit import NON_NEGATIVE, default_query_tokens, fit_law, random_starts
from scaling.law import PARAMETERS, Law, Params, Tokens, error, gradient
from scaling.limits import TASK_CELLS, TASKS
from scaling.solver import Cells, solve_many
from scaling.table import ScoreTable

MODELS: dict[str, tuple[str, ...]] = {
    "one": (),
    "rates": ("beta",),
    "tokens": ("A", "beta"),
    "separate": PARAMETERS,
}
"""Laws from the fewest to the most constants, and which of these each compressor has for itself."""
LEVEL = 0.05


class JointFit(NamedTuple):
    """One of the laws. constants leaves are [compressors], equal where they are shared; `stderr` are the linear
    standard errors of (log A, alpha, beta, D), NaN where a bound holds a constant."""

    name: str
    constants: Params[np.ndarray]
    stderr: Params[np.ndarray]
    sse: float
    n_parameters: int
    aicc: float
    weight: float
    """Akaike weight among the four."""


class FTest(NamedTuple):
    """An F test of a law against a larger one; p is the probability of as much where the smaller holds."""

    smaller: str
    larger: str
    statistic: float
    dof: tuple[int, int]
    p: float

    @property
    def rejects(self) -> bool:
        """Whether the larger law explains more than noise would."""
        return self.p < LEVEL


@dataclasses.dataclass(frozen=True)
class Joint:
    """All that was fitted, laws by name in the order of MODELS."""

    names: tuple[str, ...]
    tokens: Tokens
    query_tokens: tuple[float, ...]
    n_points: tuple[int, ...]
    fits: Mapping[str, JointFit]
    tests: tuple[FTest, ...]

    @property
    def depends(self) -> FTest:
        """One law for all against the joint law."""
        return next(t for t in self.tests if (t.smaller, t.larger) == ("one", "tokens"))

    @property
    def size_too(self) -> FTest:
        """The joint law against a law for each compressor."""
        return next(t for t in self.tests if (t.smaller, t.larger) == ("tokens", "separate"))


def formula(name: str) -> str:
    """A law's formula; `_c` marks what each compressor has for itself."""
    a, alpha, beta, d = (one + "_c" * (one in MODELS[name]) for one in PARAMETERS)
    return f"{a} / N^{alpha} / T^{beta} + {d}"


def fit_joint(
    tables: Mapping[str, ScoreTable], tokens: Tokens = "V", query_tokens: float | None = None, seed: int = 0
) -> Joint:
    """Fits all four laws to the tables, which are named by their compressors.

    Raises:
      UserError: there are fewer than two tables, too many, or too few scores for the tests.
    """
    names = tuple(tables)
    if len(names) < 2:
        raise UserError("A joint fit needs the scores of at least two compressors.")
    nothing = Params(0.0, 0.0, 0.0, 0.0)
    laws = [Law(nothing, tokens, default_query_tokens(t, query_tokens)) for t in tables.values()]
    each = [_cells(table, law) for table, law in zip(tables.values(), laws, strict=True)]
    counts = tuple(len(cells.y) for cells in each)
    if len(names) > TASKS or sum(counts) > TASK_CELLS:
        raise UserError(
            f"There are {sum(counts):,} scores of {len(names)} compressors, and a joint fit takes at most "
            f"{TASK_CELLS:,} of {TASKS}; leave some out."
        )
    # AICc needs two more scores than constants, the noise among these.
    least = len(PARAMETERS) * len(names) + 3
    if sum(counts) < least:
        raise UserError(
            f"There are {sum(counts)} scores of {len(names)} compressors, and a law for each of them with a test needs "
            f"at least {least}; add cells."
        )
    cells = Cells(*(np.concatenate(leaves) for leaves in zip(*each, strict=True)))
    group = np.repeat(np.arange(len(names)), counts)
    alone = [fit_law(table, tokens, query_tokens, seed=seed).law.params for table in tables.values()]
    separate = np.array(alone, np.float64)
    constants = {"one": np.tile(_of_all(cells, seed), (len(names), 1))}
    for name, smaller in (("rates", "one"), ("tokens", "rates")):
        starts = [constants[smaller], separate]
        found = [_least_squares(name, start, cells, group) for start in starts]
        constants[name] = min(found, key=lambda c: _sse(c, cells, group))
    constants["separate"] = separate
    fits = _fits(constants, cells, group)
    ladder = (
        ("one", "rates"),
        ("rates", "tokens"),
        ("tokens", "separate"),
        ("one", "tokens"),
        ("one", "separate"),
    )
    tests = tuple(_test(fits[small], fits[large], len(cells.y)) for small, large in ladder)
    return Joint(names, tokens, tuple(law.query_tokens for law in laws), counts, fits, tests)


def half_width(joint: Joint, name: str, level: float = 0.95) -> Params[np.ndarray]:
    """t x standard error of a law's constants, [compressors]; of A as a share of it."""
    fit = joint.fits[name]
    times = float(stdtrit(sum(joint.n_points) - fit.n_parameters, (1 + level) / 2))
    return Params(*(times * leaf for leaf in fit.stderr))


def _cells(table: ScoreTable, law: Law) -> Cells[np.ndarray]:
    i, j = np.nonzero(np.isfinite(table.score))
    return Cells(table.params_b[i], law.total(table.visual_tokens[j]), table.error[i, j], np.ones(len(i)))


def _of_all(cells: Cells[np.ndarray], seed: int) -> Float[np.ndarray, "4"]:
    """The law of all scores together."""
    found = solve_many(random_starts(cells, NON_NEGATIVE, 64, seed), cells, *NON_NEGATIVE)
    best = int(np.argmin(found.objective))
    return np.array([leaf[best] for leaf in found.params])


def _layout(name: str, compressors: int) -> Int[np.ndarray, "compressors 4"]:
    """Where each compressor's constants stand in the vector that is searched."""
    places, at = np.zeros((compressors, 4), int), 0
    for p, constant in enumerate(PARAMETERS):
        width = compressors if constant in MODELS[name] else 1
        places[:, p] = at + np.arange(compressors) % width
        at += width
    return places


def _least_squares(
    name: str,
    start: Float[np.ndarray, "compressors 4"],
    cells: Cells[np.ndarray],
    group: Int[np.ndarray, " k"],
) -> Float[np.ndarray, "compressors 4"]:
    """The best constants near a start, whose shared ones begin at their mean."""
    places = _layout(name, len(start))
    count = int(places.max()) + 1
    low, high = (np.zeros(count) for _ in range(2))
    x = np.array([start[places == k].mean() for k in range(count)])
    for p in range(4):
        low[places[:, p]], high[places[:, p]] = NON_NEGATIVE.lower[p], NON_NEGATIVE.upper[p]

    def at(x: np.ndarray) -> Params[np.ndarray]:
        return Params(*x[places[group]].T)

    def jacobian(x: np.ndarray) -> np.ndarray:
        params = at(x)
        by = gradient(params, cells.n, cells.t)
        # By A itself, whose bound is 0.
        by[:, 0] = cells.n**-params.alpha * cells.t**-params.beta
        matrix = np.zeros((len(cells.y), count))
        np.add.at(matrix, (np.arange(len(cells.y))[:, None], places[group]), by)
        return matrix

    found = least_squares(
        lambda x: error(at(x), cells.n, cells.t) - cells.y,
        np.clip(x, low + 1e-6, np.minimum(high, 1e6) - 1e-6),
        jac=jacobian,
        bounds=(low, high),
        x_scale="jac",
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-14,
        max_nfev=2000,
    )
    # The search stays a little inside of its box.
    x = np.where(found.x <= low + 1e-9, low, np.where(found.x >= high - 1e-9, high, found.x))
    return np.asarray(x[places])


def _sse(constants: Float[np.ndarray, "compressors 4"], cells: Cells[np.ndarray], group: np.ndarray) -> float:
    return float(np.sum((error(Params(*constants[group].T), cells.n, cells.t) - cells.y) ** 2))


def _fits(
    constants: Mapping[str, Float[np.ndarray, "compressors 4"]], cells: Cells[np.ndarray], group: np.ndarray
) -> dict[str, JointFit]:
    k, fits = len(cells.y), {}
    for name, found in constants.items():
        count, sse = int(_layout(name, len(found)).max()) + 1, _sse(found, cells, group)
        errors = _standard_errors(name, found, cells, group, sse / max(k - count, 1))
        fits[name] = JointFit(name, Params(*found.T), errors, sse, count, aicc(sse, k, count), 0.0)
    best = min(fit.aicc for fit in fits.values())
    raw = {name: math.exp(-(fit.aicc - best) / 2) for name, fit in fits.items()}
    return {name: fit._replace(weight=raw[name] / sum(raw.values())) for name, fit in fits.items()}


def _standard_errors(
    name: str,
    found: Float[np.ndarray, "compressors 4"],
    cells: Cells[np.ndarray],
    group: np.ndarray,
    variance: float,
) -> Params[np.ndarray]:
    """Linear ones; constants on a bound are held there."""
    places = _layout(name, len(found))
    matrix = np.zeros((len(cells.y), int(places.max()) + 1))
    by = gradient(Params(*found[group].T), cells.n, cells.t)
    np.add.at(matrix, (np.arange(len(cells.y))[:, None], places[group]), by)
    low, high = (np.array(ends, np.float64) for ends in NON_NEGATIVE)
    held = np.zeros(matrix.shape[1], bool)
    held[places] = (found <= low + 1e-9) | (found >= high - 1e-9)
    matrix[:, held] = 0.0
    covariance = variance * np.linalg.pinv(matrix.T @ matrix, rcond=1e-13, hermitian=True)
    errors = np.where(held, np.nan, np.sqrt(np.maximum(np.diag(covariance), 0)))
    return Params(*errors[places].T)


def _test(small: JointFit, large: JointFit, points: int) -> FTest:
    more, rest = large.n_parameters - small.n_parameters, points - large.n_parameters
    gained = max(small.sse - large.sse, 0.0)
    if large.sse <= 1e-24 * points:
        statistic = math.inf if gained > 1e-20 * points else 0.0
    else:
        statistic = gained / more / (large.sse / rest)
    p = 0.0 if math.isinf(statistic) else float(fdtrc(more, rest, statistic))
    return FTest(small.name, large.name, statistic, (more, rest), p)
