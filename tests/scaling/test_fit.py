import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from quecc_jax.errors import UserError
from scaling.fit import NON_NEGATIVE, PUBLISHED_BOX, cells_of, fit_law, project_variables
from scaling.law import Law, Params, error
from scaling.scores import published
from scaling.table import parse_scores

SIZES, COUNTS = [0.5, 1.8, 4, 7], [1, 4, 16, 36, 64, 144, 576]


def table_of(score, sizes=SIZES, counts=COUNTS):
    return parse_scores({"params_b": sizes, "visual_tokens": counts, "score": np.asarray(score)})


def scores_by(params, noise=0.0, seed=0, tokens="V", sizes=SIZES, counts=COUNTS):
    law = Law(Params(*params), tokens, 50)
    clean = 1 - law.error(np.array(sizes)[:, None], np.array(counts)[None, :])
    return clean + noise * np.random.default_rng(seed).normal(size=clean.shape)


@pytest.mark.parametrize(
    ("name", "sse", "constants"),
    [
        ("general", 3.7938e-4, (0.59077, 0.070937, 0.0151016, 0)),
        ("ocr", 5.1366e-3, (0.91721, 0.028233, 0.039412, 0)),
    ],
)
def test_published_tables_reach_the_known_optimum(name, sse, constants):
    fit = fit_law(published(name))
    assert fit.sse == pytest.approx(sse, rel=2e-5)
    np.testing.assert_allclose(fit.law.params, constants, rtol=1e-4, atol=1e-9)
    assert fit.bounds_hit == ("D",)
    assert fit.converged
    assert fit.n_agreeing == fit.n_starts == 256


def test_published_constants_and_the_best_at_their_floor():
    table = published("general")
    cells = cells_of(table, Law(Params(0, 0, 0, 0)))
    grid_point = Params(0.557, 0.0768, 0.0157, 0.0333)
    authors = float(np.sum((error(grid_point, cells.n, cells.t) - cells.y) ** 2))
    assert authors == pytest.approx(4.06e-4, rel=5e-3)
    fit = fit_law(table, bounds=PUBLISHED_BOX, fix_d=0.0333)
    assert 3.7938e-4 < fit.sse < authors
    assert fit.law.params.D == 0.0333
    np.testing.assert_allclose(fit.law.params[:3], grid_point[:3], rtol=0.03)


def test_box_of_the_authors_contains_the_optimum():
    assert fit_law(published("general"), bounds=PUBLISHED_BOX).sse == pytest.approx(3.7938e-4, rel=2e-5)
    ocr = fit_law(published("ocr"), bounds=PUBLISHED_BOX)
    assert set(ocr.bounds_hit) == {"A", "beta"}
    assert ocr.converged


def test_starting_points_do_not_matter():
    fits = [fit_law(published("ocr"), seed=seed, n_starts=16) for seed in (0, 1)]
    np.testing.assert_allclose(fits[0].law.params, fits[1].law.params, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["general", "ocr"])
@pytest.mark.parametrize("tokens", ["V", "Q+V"])
def test_agrees_with_scipy(name, tokens):
    table = published(name)
    fit = fit_law(table, tokens)
    cells = cells_of(table, fit.law)

    def residual(x):
        return error(Params(*x), cells.n, cells.t) - cells.y

    starts = [(0.6, 0.05, 0.05, 0.01), (1.5, 0.1, 0.3, 0.4), (0.3, 0.2, 0.1, 0.2)]
    options = {"bounds": (0, np.inf), "xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": 5000}
    best = min((least_squares(residual, start, **options) for start in starts), key=lambda found: found.cost)
    assert fit.sse == pytest.approx(2 * best.cost, rel=1e-6)
    np.testing.assert_allclose(fit.residuals[np.isfinite(table.score)], residual(fit.law.params), atol=1e-12)


def test_variable_projection_agrees_inside_and_on_bounds():
    for name in ("general", "ocr"):
        for bounds in (NON_NEGATIVE, PUBLISHED_BOX, NON_NEGATIVE.with_fixed_d(0.1)):
            fit = fit_law(published(name), bounds=bounds)
            check = project_variables(cells_of(published(name), fit.law), bounds)
            assert check.sse == pytest.approx(fit.sse, rel=1e-6)


laws = st.tuples(st.floats(0.2, 0.6), st.floats(0.01, 0.4), st.floats(0.01, 0.3), st.floats(0.0, 0.2))


@settings(deadline=None, max_examples=25)
@given(law=laws, tokens=st.sampled_from(["V", "Q+V"]))
def test_noiseless_law_is_recovered(law, tokens):
    score = scores_by(law, tokens=tokens)
    if score.min() < 0:
        score = scores_by((law[0] / 2, *law[1:]), tokens=tokens)
        law = (law[0] / 2, *law[1:])
    fit = fit_law(table_of(score), tokens, query_tokens=50, n_starts=64)
    assert fit.converged
    assert fit.sse < 1e-18
    np.testing.assert_allclose(fit.law.params, law, rtol=1e-3, atol=1e-4)


@settings(deadline=None, max_examples=15)
@given(factor=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_unit_of_size_changes_only_a(factor, seed):
    score = scores_by((0.5, 0.12, 0.08, 0.1), noise=0.003, seed=seed)
    fit = fit_law(table_of(score), n_starts=64)
    other = fit_law(table_of(score, sizes=[n * factor for n in SIZES]), n_starts=64)
    assert other.sse == pytest.approx(fit.sse, rel=1e-7)
    p, q = fit.law.params, other.law.params
    np.testing.assert_allclose(q[1:], p[1:], rtol=1e-3, atol=1e-5)
    assert factor**q.alpha / q.A == pytest.approx(1 / p.A, rel=1e-3)


@settings(deadline=None, max_examples=10)
@given(rows=st.permutations(range(4)), columns=st.permutations(range(7)))
def test_order_of_cells_does_not_matter(rows, columns):
    table = published("general")
    shuffled = table_of(
        table.score[np.ix_(rows, columns)], [SIZES[i] for i in rows], [COUNTS[j] for j in columns]
    )
    np.testing.assert_allclose(
        fit_law(shuffled, n_starts=8).law.params, fit_law(table, n_starts=8).law.params, rtol=1e-7, atol=1e-9
    )


def test_missing_cells_are_left_out():
    law = (0.5, 0.1, 0.05, 0.1)
    score = scores_by(law)
    score[0, 3:] = np.nan
    score[2, 0] = np.nan
    fit = fit_law(table_of(score))
    assert fit.n_points == 28 - 5
    assert np.isnan(fit.residuals).sum() == 5
    np.testing.assert_allclose(fit.law.params, law, rtol=1e-5)


def test_doubtful_cells_can_be_left_out():
    table = published("ocr")
    fit = fit_law(table.without_flagged())
    assert fit.n_points == 26
    assert fit.sse < 5.1366e-3 * 0.95


def test_wanting_negative_exponents_ends_on_the_bound():
    log_n, log_v = np.log(SIZES)[:, None], np.log(COUNTS)[None, :]
    fit = fit_law(table_of(0.5 + 0.02 * log_n - 0.02 * log_v))
    assert "beta" in fit.bounds_hit
    assert fit.law.params.beta == 0
    assert fit.law.params.alpha > 0
    assert fit.converged


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
def test_flat_scores_give_their_mean(level):
    fit = fit_law(table_of(np.full((4, 7), level)))
    assert fit.law.params == pytest.approx((1 - level, 0, 0, 0))
    assert fit.converged
    assert np.isnan(fit.r2)


def test_a_step_is_stopped_by_the_bound_and_says_so():
    score = np.array([0.4, 0.98, 0.98, 0.98])[:, None] + np.zeros(7)
    fit = fit_law(table_of(score))
    assert fit.law.params.alpha == 5
    assert "alpha" in fit.bounds_hit
    assert fit.converged


def test_too_few_points_and_impossible_floor_are_refused():
    score = np.full((2, 2), np.nan)
    score[0, 0], score[0, 1], score[1, 0] = 0.2, 0.3, 0.4
    three = table_of(score, [1, 2], [1, 4])
    with pytest.raises(UserError, match="3 scores, fewer than the 4"):
        fit_law(three)
    assert fit_law(three, fix_d=0.0).sse == pytest.approx(0, abs=1e-20)
    with pytest.raises(UserError, match="D"):
        fit_law(published("general"), fix_d=1.5)


def test_float64_inside_leaves_the_global_switch_alone():
    fit_law(published("general"), n_starts=8)
    assert not jax.config.read("jax_enable_x64")
    assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.parametrize("name", ["general", "ocr"])
def test_r2_is_the_explained_share_of_the_variance(name):
    table = published(name)
    fit = fit_law(table, n_starts=32)
    error = table.error[np.isfinite(table.error)]
    assert fit.r2 == pytest.approx(1 - fit.sse / (error.var() * len(error)), rel=1e-12)
