import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.stats import binom, chi2

from benchmarks import scaling_coverage as study
from scaling.__main__ import main
from scaling.diagnostics.assess import assess
from scaling.diagnostics.lack_of_fit import lack_of_fit, lack_of_fit_text
from scaling.fit import fit_law
from scaling.law import Law, Params
from scaling.table import parse_scores

SIZES, COUNTS = [0.5, 1.8, 4, 7], [1, 4, 16, 64, 256, 576]


def noisy(seed, params=(0.5, 0.12, 0.08, 0.1), misfit=0.0):
    """Scores whose standard errors, which differ, are the noise's own; `misfit` is what they do not say."""
    rng = np.random.default_rng(seed)
    clean = 1 - Law(Params(*params)).error(np.array(SIZES)[:, None], np.array(COUNTS)[None, :])
    stderr = 0.004 * np.exp(rng.uniform(-0.7, 0.7, clean.shape))
    score = clean + np.hypot(stderr, misfit) * rng.normal(size=clean.shape)
    return parse_scores({"params_b": SIZES, "visual_tokens": COUNTS, "score": score, "stderr": stderr})


@pytest.mark.parametrize("loss", ["least_squares", "weighted", "huber"])
def test_chi_squared_is_the_least_that_scipy_finds(loss):
    table = noisy(1, misfit=0.005)
    found = lack_of_fit(table, fit_law(table, loss=loss, n_starts=32))
    n, v = np.meshgrid(SIZES, COUNTS, indexing="ij")

    def residuals(p):
        return ((p[0] * n ** -p[1] * v ** -p[2] + p[3] - table.error) / table.stderr).ravel()

    best = least_squares(residuals, [0.5, 0.12, 0.08, 0.1], bounds=(0, [9, 5, 5, 1]), xtol=1e-12, ftol=1e-12)
    assert found is not None and found.dof == 20
    assert found.chi2 == pytest.approx(2 * best.cost, rel=1e-6)
    assert found.p == pytest.approx(chi2.sf(found.chi2, 20))
    assert found.widening == pytest.approx(math.sqrt(found.chi2 / 20)) and found.rejected == (found.p < 0.05)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_law_that_holds_is_rejected_as_often_as_the_level_says(floor):
    tested = []
    for seed in range(60):
        table = noisy(seed, (0.5, 0.12, 0.08, floor))
        tested.append(lack_of_fit(table, fit_law(table, n_starts=8)))
    rejected = sum(found is not None and found.rejected for found in tested)
    low, high = binom.ppf([5e-4, 1 - 5e-4], 60, 0.05)
    assert low <= rejected <= high
    # A constant on its bound is not fitted.
    dofs = {found.dof for found in tested if found is not None}
    assert dofs <= {20, 21} and (floor > 0 or dofs == {20, 21})


def test_a_law_that_does_not_hold_is_said_to_be_rejected():
    table = noisy(3, misfit=0.012)
    fit = fit_law(table, n_starts=32)
    trust = assess(table, fit, count=20)
    assert trust.lack_of_fit is not None and trust.lack_of_fit.rejected
    (said,) = [one for one in trust.findings if "reject" in one]
    assert said == lack_of_fit_text(trust.lack_of_fit) and f"{trust.lack_of_fit.widening:.2f} times" in said
    fine = assess(noisy(3), fit_law(noisy(3), n_starts=32), count=20)
    assert fine.lack_of_fit is not None and not [one for one in fine.findings if "reject" in one]
    assert "no farther from the law" in lack_of_fit_text(fine.lack_of_fit)


def test_without_standard_errors_there_is_no_test():
    table = noisy(0)
    for stderr in (None, np.zeros(table.score.shape), np.where(table.score > table.score.min(), 0.1, np.nan)):
        bare = dataclasses.replace(table, stderr=stderr)
        assert lack_of_fit(bare, fit_law(bare, n_starts=8)) is None
    four = parse_scores(
        {
            "params_b": [1, 2],
            "visual_tokens": [1, 4],
            "score": [[0.2, 0.3], [0.4, 0.6]],
            "stderr": [[0.01, 0.01], [0.01, 0.01]],
        }
    )
    found = lack_of_fit(four, fit_law(four, fix_d=0.0))
    assert found is not None and found.dof == 1


@pytest.mark.usefixtures("without_figures")
def test_the_record_and_the_page_say_it(tmp_path, capsys):
    table = noisy(3, misfit=0.012)
    content = {"params_b": SIZES, "visual_tokens": COUNTS, "score": table.score.tolist()}
    (tmp_path / "s.json").write_text(json.dumps(content | {"stderr": table.stderr.tolist()}))
    command = ["fit", "--scores", str(tmp_path / "s.json"), "--out", str(tmp_path), "--refits", "20"]
    assert main(command) == 0
    record = json.loads((tmp_path / "fit.json").read_text())
    found = lack_of_fit(table, fit_law(table))
    assert found is not None
    told = record["lack_of_fit"]
    assert told == pytest.approx({**found._asdict(), "rejected": True, "widening": found.widening})
    assert (
        "reject the law" in capsys.readouterr().out
        and "reject the law" in (tmp_path / "fit.html").read_text()
    )


@pytest.mark.slow
def test_intervals_hold_under_independent_misfit_and_those_of_standard_errors_do_not():
    """Deviations of twice the standard error in each cell, of which the standard errors say nothing."""
    laws = study.random_laws(150, seed=4, misfit=2.0)
    problems = study.fitted(laws)
    held = study.coverage(study.profile_method(problems), laws)
    # 95 % nominal: each count falls outside these limits once in ten thousand.
    low, high = binom.ppf([5e-5, 1 - 5e-5], 150, 0.95)
    assert all(low <= inside.sum() <= high for inside in held.values())
    naive = study.coverage(study.linear_method(problems, laws.noise**2), laws)
    assert np.mean([naive[name].mean() for name in ("alpha", "beta")]) < 0.8
