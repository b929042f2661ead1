import dataclasses

import numpy as np
import pytest

from quecc_jax.errors import UserError
from scaling.diagnostics.assess import assess
from scaling.diagnostics.bootstrap import bootstrap, percentile_intervals
from scaling.fit import fit_law
from scaling.law import Law, Params
from scaling.scores import published
from scaling.table import parse_scores


def noisy(params, seed, noise=0.004):
    sizes, counts = [0.5, 1.8, 4, 7], [1, 4, 16, 64, 256, 576]
    clean = 1 - Law(Params(*params)).error(np.array(sizes)[:, None], np.array(counts)[None, :])
    score = clean + noise * np.random.default_rng(seed).normal(size=clean.shape)
    return parse_scores({"params_b": sizes, "visual_tokens": counts, "score": score})


@pytest.mark.parametrize("resample", ["residual", "cell"])
def test_one_local_refit_finds_what_many_starts_find(resample):
    table = published("general")
    fit = fit_law(table)
    samples = bootstrap(table, fit, resample, count=5, seed=3)
    n = fit.n_points
    draws = np.random.default_rng(3).integers(n, size=(5, n))
    fitted = 1 - (table.error + fit.residuals).ravel()
    residual = -fit.residuals.ravel()
    for k in range(5):
        if resample == "residual":
            drawn = ((residual - residual.mean()) * np.sqrt(n / (n - 4)))[draws[k]]
            again = fit_law(dataclasses.replace(table, score=(fitted - drawn).reshape(table.score.shape)))
            np.testing.assert_allclose([leaf[k] for leaf in samples], again.law.params, rtol=1e-4, atol=1e-5)
        else:
            error = np.array([leaf[k] for leaf in samples])
            counts = np.bincount(draws[k], minlength=n)
            i, j = np.nonzero(np.isfinite(table.score))

            def cost(p, counts=counts, i=i, j=j):
                predicted = p[0] * table.params_b[i] ** -p[1] * table.visual_tokens[j] ** -p[2] + p[3]
                return np.sum(counts * (predicted - table.error[i, j]) ** 2)

            rng = np.random.default_rng(k)
            nearby = error * rng.uniform(0.98, 1.02, (200, 4))
            assert all(cost(p) >= cost(error) for p in nearby)


def test_intervals_cover_the_truth_usually():
    truth = (0.5, 0.12, 0.08, 0.1)
    hits = np.zeros(4)
    for seed in range(40):
        table = noisy(truth, seed)
        fit = fit_law(table, n_starts=8)
        ci = percentile_intervals(bootstrap(table, fit, count=200, seed=seed))
        hits += [low <= value <= high for (low, high), value in zip(ci.values(), truth, strict=True)]
    # 95 % nominal; with 40 tables a fair interval falls below 33 hits about once in a thousand.
    assert hits.min() >= 33, hits


def test_intervals_shrink_with_the_noise():
    widths = []
    for noise in (0.008, 0.001):
        table = noisy((0.5, 0.12, 0.08, 0.1), 0, noise)
        low, high = percentile_intervals(bootstrap(table, fit_law(table), count=300))["beta"]
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_findings_say_what_is_not_known():
    table = published("general")
    said = " ".join(assess(table, fit_law(table), count=100).findings)
    assert "D ended on its bound 0" in said
    assert "None of D, alpha and beta is identified by these 28 scores: every D from 0.000 to 0.14" in said
    held = assess(table, fit_law(table, fix_d=0.1), count=100)
    assert set(held.profiles) == {"A", "alpha", "beta"}
    assert not held.findings
    assert held.ci is not None
    assert held.ci["D"] == (0.1, 0.1)


def test_profiles_are_the_default_and_a_huber_loss_has_none():
    table = published("general")
    least = fit_law(table)
    profiled, drawn = assess(table, least, count=100), assess(table, least, count=100, method="bootstrap")
    assert profiled.ci_method.startswith("profile")
    assert drawn.ci == profiled.bootstrap_ci
    assert profiled.ci is not None
    assert profiled.ci["D"][1] == pytest.approx(0.141, abs=0.001)
    robust = assess(table, fit_law(table, loss="huber", n_starts=32), count=100)
    assert not robust.profiles
    assert robust.ci_method.startswith("residual bootstrap")


def test_useless_size_is_named():
    sizes, counts = [1, 2, 4], [1, 4, 16, 64]
    score = 0.5 + 0.03 * np.log(counts)[None, :] - 0.02 * np.log(sizes)[:, None]
    table = parse_scores({"params_b": sizes, "visual_tokens": counts, "score": score})
    said = " ".join(assess(table, fit_law(table), count=50).findings)
    assert "larger LLMs do not lower the error" in said


def test_no_interval_without_degrees_of_freedom():
    table = parse_scores({"params_b": [1, 2], "visual_tokens": [1, 4], "score": [[0.2, 0.3], [0.4, 0.6]]})
    fit = fit_law(table)
    trust = assess(table, fit)
    assert trust.ci is None
    assert any("exactly as many scores as parameters" in sentence for sentence in trust.findings)
    with pytest.raises(ValueError, match="no residuals"):
        bootstrap(table, fit)


def test_normal_noise_of_the_residuals_gives_like_intervals():
    table = noisy((0.5, 0.12, 0.08, 0.1), 0)
    fit = fit_law(table)
    drawn, normal = (
        percentile_intervals(bootstrap(table, fit, resample, count=600))
        for resample in ("residual", "parametric")
    )
    for name in ("alpha", "beta"):
        assert np.ptp(normal[name]) == pytest.approx(np.ptp(drawn[name]), rel=0.25)


def test_tasks_that_agree_leave_no_doubt_and_others_do():
    table = noisy((0.5, 0.12, 0.08, 0.1), 0)
    fit = fit_law(table)
    same = dataclasses.replace(table, tasks={"one": table.score, "two": table.score})
    low, high = percentile_intervals(bootstrap(same, fit, "task", count=50))["beta"]
    assert low == pytest.approx(high, abs=1e-6)
    other = noisy((0.5, 0.12, 0.12, 0.1), 1).score
    tasks = {"one": table.score, "two": other}
    apart = dataclasses.replace(table, score=(table.score + other) / 2, tasks=tasks)
    mean = fit_law(apart)
    low, high = percentile_intervals(bootstrap(apart, mean, "task", count=200))["beta"]
    ends = [fit_law(dataclasses.replace(apart, score=task)).law.params.beta for task in apart.tasks.values()]
    assert (low, high) == pytest.approx((min(ends), max(ends)), abs=1e-4)


def test_tasks_that_are_not_there_cannot_be_drawn():
    table = published("general")
    with pytest.raises(UserError, match="no tasks"):
        bootstrap(table, fit_law(table), "task", count=5)
