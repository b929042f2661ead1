import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.stats import binom
from scipy.stats import t as student

from benchmarks import scaling_coverage as study
from scaling.fit import cells_of, fit_law
from scaling.intervals import (
    constant_intervals,
    critical_root,
    error_intervals,
    error_standard_errors,
    problem_of,
    profiles,
)
from scaling.law import PARAMETERS, Law, Params, error
from scaling.scores import published
from scaling.table import parse_scores


def noisy(params, seed, noise=0.003):
    sizes, counts = [0.5, 1.8, 4, 7], [1, 4, 16, 64, 256, 576]
    clean = 1 - Law(Params(*params)).error(np.array(sizes)[:, None], np.array(counts)[None, :])
    score = clean + noise * np.random.default_rng(seed).normal(size=clean.shape)
    return parse_scores({"params_b": sizes, "visual_tokens": counts, "score": score})


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    laws = study.random_laws(150, seed=1)
    held = study.coverage(study.profile_method(study.fitted(laws)), laws)
    assert laws.is_floorless.sum() > 20
    # 95 % nominal: each count falls outside these limits once in ten thousand.
    low, high = binom.ppf([5e-5, 1 - 5e-5], 150, 0.95)
    counts = {name: int(inside.sum()) for name, inside in held.items()}
    assert set(counts) == {*PARAMETERS, *map(study.point_name, study.UNSEEN)}
    assert all(low <= count <= high for count in counts.values()), counts


@pytest.mark.slow
def test_coverage_on_a_thousand_laws():
    laws = study.random_laws(1000, seed=2)
    held = study.coverage(study.profile_method(study.fitted(laws)), laws)
    shares = {name: float(inside.mean()) for name, inside in held.items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares


def test_a_batch_gives_what_each_table_gives():
    laws = study.random_laws(5, seed=3)
    batch = constant_intervals(study.fitted(laws))
    for k in range(5):
        score = (1 - laws.cells.y[k]).reshape(len(study.SIZES), len(study.COUNTS))
        table = parse_scores({"params_b": study.SIZES, "visual_tokens": study.COUNTS, "score": score})
        alone = constant_intervals(problem_of(table, fit_law(table)))
        for name in PARAMETERS:
            np.testing.assert_allclose(batch[name][k], alone[name][0], rtol=2e-3, atol=1e-5)


def least_loss(cells, imposed, start):
    """The least squared error with one constant held, by scipy's simplex search."""
    (name, value), rest = imposed, [p for p in PARAMETERS if p != imposed[0]]

    def loss(x):
        params = Params(**{name: value}, **dict(zip(rest, np.abs(x), strict=True)))
        return np.sum((error(params, cells.n, cells.t) - cells.y) ** 2)

    at = np.array([getattr(start, p) for p in rest])
    for _ in range(3):
        at = minimize(
            loss, at, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-16, "maxfev": 4000}
        ).x
    return loss(at)


def test_ends_of_an_inner_interval_are_where_the_loss_meets_its_limit():
    table = noisy((0.5, 0.12, 0.08, 0.15), 2)
    fit = fit_law(table)
    ends = constant_intervals(problem_of(table, fit))
    dof = fit.n_points - 4
    limit = fit.sse * (1 + student.ppf(0.975, dof) ** 2 / dof)
    assert not fit.bounds_hit
    for name in ("alpha", "beta", "D"):
        for end in ends[name][0]:
            found = least_loss(cells_of(table, fit.law), (name, end), fit.law.params)
            assert found == pytest.approx(limit, rel=2e-3)


def test_critical_root_near_and_far_from_a_bound():
    assert critical_root(np.array([0.0]), 24, 0.95) == pytest.approx(student.ppf(0.95, 24), abs=1e-6)
    assert critical_root(np.array([9.0]), 24, 0.95) == pytest.approx(student.ppf(0.975, 24), abs=1e-6)
    between = critical_root(np.linspace(0, 5, 50), 24, 0.95)
    assert np.all(np.diff(between) > -1e-9)
    # Feldman and Cousins' table: normal noise, truth at 0.5 and 1 standard errors from the bound.
    drawn = np.random.default_rng(0).normal(size=400_000)
    for distance in (0.5, 1.0):
        x = distance + drawn
        ratio = (x - distance) ** 2 - np.minimum(x, 0) ** 2
        c = critical_root(np.array([distance]), 10**6, 0.95)[0]
        assert np.mean(ratio <= c**2) == pytest.approx(0.95, abs=2e-3)


def test_interval_reaches_its_bound_up_to_a_one_sided_test():
    table = published("general")
    fit = fit_law(table)
    assert constant_intervals(problem_of(table, fit))["D"][0][0] == 0
    away = fit_law(noisy((0.4, 0.3, 0.2, 0.25), 0))
    low, _ = constant_intervals(problem_of(noisy((0.4, 0.3, 0.2, 0.25), 0), away))["D"][0]
    assert 0.2 < low < away.law.params.D


def test_predicted_error_is_profiled_too():
    table = noisy((0.5, 0.12, 0.08, 0.15), 4)
    fit = fit_law(table)
    problems = problem_of(table, fit)
    here = float(fit.law.error(14, 100))
    at = np.array([14.0]), np.array([100.0])
    low, high = error_intervals(problems, *at)[0, 0]
    half = student.ppf(0.975, fit.n_points - 4) * error_standard_errors(problems, *at)[0, 0]
    assert low < here < high
    # Close to a straight line, the profile is close to the linear interval.
    np.testing.assert_allclose([here - low, high - here], half, rtol=0.15)

    # The least loss with the law forced through (14B, 100 tokens), A written by the other constants.
    cells = cells_of(table, fit.law)

    def forced(y):
        def loss(x):
            params = Params((y - x[2]) * 14 ** x[0] * 100 ** x[1], *x)
            return np.sum((error(params, cells.n, cells.t) - cells.y) ** 2)

        at = np.array(fit.law.params[1:])
        for _ in range(3):
            at = minimize(
                loss, at, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-16, "maxfev": 4000}
            ).x
        return loss(at)

    limit = fit.sse * (1 + student.ppf(0.975, fit.n_points - 4) ** 2 / (fit.n_points - 4))
    assert high == pytest.approx(brentq(lambda y: forced(y) - limit, here, here + 3 * half), rel=1e-4)


def test_profile_of_d_shows_the_valley_of_the_published_table():
    table = published("general")
    fit = fit_law(table)
    profile = profiles(table, fit)["D"]
    assert profile.objective[0] == pytest.approx(fit.sse, rel=1e-6)
    assert np.all(np.diff(profile.objective) > 0)
    for d, sse, alpha in ((0.1, 4.2e-4, 0.087),):
        assert np.interp(d, profile.values, profile.objective) == pytest.approx(sse, rel=0.01)
        assert np.interp(d, profile.values, profile.params.alpha) == pytest.approx(alpha, rel=0.01)
    assert profile.interval[0] == 0
    assert 0.13 < profile.interval[1] < 0.15


def test_nothing_to_profile():
    table = parse_scores({"params_b": [1, 2], "visual_tokens": [1, 4], "score": [[0.2, 0.3], [0.4, 0.6]]})
    assert profiles(table, fit_law(table)) == {}
    clean = noisy((0.5, 0.12, 0.08, 0.1), 0, noise=0.0)
    assert profiles(clean, fit_law(clean)) == {}
    assert profiles(published("general"), fit_law(published("general"), loss="huber", n_starts=32)) == {}


# Scores of no law at all: the first fit has alpha at 0, the second both exponents at their upper bounds.
LAWLESS = [
    {
        "params_b": [0.0419, 0.2705, 0.6373],
        "visual_tokens": [1, 4],
        "score": [[0.813, 0.913], [0.607, 0.729], [0.544, 0.935]],
    },
    {
        "params_b": [0.2279, 0.6236, 0.8904],
        "visual_tokens": [1, 4],
        "score": [[0.084, 0.833], [0.787, 0.239], [0.876, 0.059]],
    },
]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("scores", LAWLESS)
def test_where_nothing_limits_a_constant_its_interval_is_no_accident(scores):
    """No division by infinite losses; and no law within the limit has less error than the interval says."""
    table = parse_scores(scores)
    fit = fit_law(table, n_starts=64)
    problems = problem_of(table, fit)
    for low, high in (pair[0] for pair in constant_intervals(problems).values()):
        assert low <= high and not np.isnan([low, high]).any()
    n, t = np.full(2, 2 * table.params_b[-1]), table.visual_tokens[:2]
    ends = error_intervals(problems, n, t)[0]
    assert np.isfinite(ends).all() and (ends[:, 0] <= ends[:, 1]).all()
    limit = fit.objective * (1 + student.ppf(0.975, problems.dof) ** 2 / problems.dof)
    rng = np.random.default_rng(0)
    cells = cells_of(table, fit.law)
    near = [np.asarray(leaf, np.float64) for leaf in fit.law.params]
    # Laws near the best one and all over the box.
    count = 200_000
    drawn = [
        np.where(
            rng.random(count) < 0.5,
            np.minimum(x * np.exp(rng.normal(size=count)), top),
            top * rng.random(count),
        )
        for x, top in zip(near, (2.0, 5.0, 5.0, 1.0), strict=True)
    ]
    laws = Params(*(leaf[:, None] for leaf in drawn))
    loss = ((error(laws, np.asarray(cells.n), np.asarray(cells.t)) - np.asarray(cells.y)) ** 2).sum(1)
    inside = loss <= limit
    assert inside.sum() > 20
    # Errors are shares: laws that promise more than 1 there say nothing.
    there = np.minimum(error(laws, n, t)[inside], 1)
    assert (there.min(0) >= ends[:, 0] - 2e-3).all() and (there.max(0) <= ends[:, 1] + 2e-3).all()
