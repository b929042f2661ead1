import dataclasses
import math

import numpy as np
import pytest

from quecc_jax.errors import UserError
from scaling.diagnostics.holdout import hold_out, influence, predict
from scaling.diagnostics.rivals import aicc, compare
from scaling.fit import fit_law
from scaling.law import Law, Params
from scaling.scores import published
from scaling.table import parse_scores

SIZES, COUNTS = [0.5, 1.8, 4, 7], [1, 4, 16, 64, 256, 576]
TRUTH = Law(Params(0.5, 0.12, 0.08, 0.1))


def table_of(noise=0.0, seed=0):
    clean = 1 - TRUTH.error(np.array(SIZES)[:, None], np.array(COUNTS)[None, :])
    score = clean + noise * np.random.default_rng(seed).normal(size=clean.shape)
    return parse_scores({"params_b": SIZES, "visual_tokens": COUNTS, "score": score})


@pytest.fixture(scope="module")
def general():
    table = published("general")
    return table, fit_law(table)


def test_holding_out_a_size_is_a_fit_to_the_others(general):
    table, fit = general
    found = hold_out(table, fit)
    assert [h.value for h in found if h.axis == "params_b"] == table.params_b.tolist()
    assert [h.value for h in found if h.axis == "visual_tokens"] == table.visual_tokens.tolist()
    largest = next(h for h in found if h.axis == "params_b" and h.value == 7)
    score = table.score.copy()
    score[-1] = np.nan
    again = fit_law(dataclasses.replace(table, score=score))
    np.testing.assert_allclose(largest.params, again.law.params, rtol=1e-5, atol=1e-8)
    miss = again.law.error(7, table.visual_tokens) - table.error[-1]
    assert largest.is_extrapolation
    assert largest.rmse == pytest.approx(np.sqrt(np.mean(miss**2)), rel=1e-4)
    assert abs(largest.worst) == pytest.approx(np.abs(miss).max(), rel=1e-4)
    # The paper reports 2 % for the next size; one further than the fit must be of that order too.
    assert largest.worst_share < 0.05


def test_exact_scores_are_predicted_exactly():
    table = table_of()
    assert max(h.rmse for h in hold_out(table, fit_law(table))) < 1e-6


def test_two_sizes_leave_only_counts_to_hold_out():
    table = table_of(0.003)
    score = table.score.copy()
    score[1:3] = np.nan
    table = dataclasses.replace(table, score=score)
    assert {h.axis for h in hold_out(table, fit_law(table))} == {"visual_tokens"}


def test_a_corrupted_cell_is_the_most_influential():
    table = table_of(0.001)
    score = table.score.copy()
    score[2, 3] += 0.05
    table = dataclasses.replace(table, score=score)
    cells = influence(table, fit_law(table))
    assert (cells[0].params_b, cells[0].visual_tokens) == (SIZES[2], COUNTS[3])
    assert len(cells) == table.score.size
    score = score.copy()
    score[2, 3] = np.nan
    without = fit_law(dataclasses.replace(table, score=score))
    np.testing.assert_allclose(cells[0].params, without.law.params, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_prediction_covers_new_scores_of_a_larger_size():
    inside = []
    for seed in range(25):
        table = table_of(0.004, seed)
        fit = fit_law(table, n_starts=8)
        seen = predict(table, fit, None, 14)
        fresh = 1 - TRUTH.error(14, seen.visual_tokens)
        fresh = fresh + 0.004 * np.random.default_rng(1000 + seed).normal(size=fresh.shape)
        assert np.all(seen.low < seen.score) and np.all(seen.score < seen.high)
        inside.append(np.mean((seen.low <= fresh) & (fresh <= seen.high)))
    # 95 % nominal over 150 scores, six of each table sharing one fit.
    assert 0.87 <= np.mean(inside) <= 1.0


def test_a_size_that_is_none_is_refused(general):
    table, fit = general
    with pytest.raises(UserError, match="positive"):
        predict(table, fit, None, -1)


WIDE_SIZES, WIDE_COUNTS = np.array([0.5, 1.8, 4, 7]), np.array([1, 4, 16, 36, 64, 144, 576])


def best_for(error, noise=5e-4):
    score = 1 - error + noise * np.random.default_rng(0).normal(size=error.shape)
    table = parse_scores({"params_b": WIDE_SIZES, "visual_tokens": WIDE_COUNTS, "score": score})
    return compare(table, fit_law(table))[0]


def test_product_and_no_floor_agree_with_the_fit():
    for name in ("general", "ocr"):
        table = published(name)
        fit = fit_law(table)
        rivals = {rival.name: rival for rival in compare(table, fit)}
        assert rivals["product"].sse == pytest.approx(fit.sse, rel=1e-4)
        assert rivals["no floor"].sse == pytest.approx(fit.sse, rel=1e-4)  # D ends on 0 in both tables
        assert rivals["no floor"].aicc < rivals["product"].aicc
        assert rivals["text counts"].sse == pytest.approx(fit_law(table, "Q+V").sse, rel=1e-4)
        assert sum(rival.weight for rival in rivals.values()) == pytest.approx(1)


def test_log_linear_is_ordinary_least_squares():
    table = published("general")
    n, v = np.meshgrid(np.log(table.params_b), np.log(table.visual_tokens), indexing="ij")
    design = np.stack([np.ones(n.size), n.ravel(), v.ravel()], axis=1)
    _, squared, *_ = np.linalg.lstsq(design, table.error.ravel(), rcond=None)
    rival = next(r for r in compare(table, fit_law(table)) if r.name == "log-linear")
    assert rival.sse == pytest.approx(squared[0], rel=1e-8)


def test_the_law_that_made_the_scores_wins():
    n, v = WIDE_SIZES[:, None], WIDE_COUNTS[None, :]
    assert best_for(0.3 / n**0.4 + 0.4 / v**0.3 + 0.1).name == "additive"
    assert best_for(0.6 - 0.05 * np.log(n) - 0.03 * np.log(v)).name == "log-linear"
    assert best_for(0.8 / n**0.2 / v**0.1).name == "no floor"
    assert best_for(0.7 / n**0.3 / (50 + v) ** 0.25 + 0.2).name == "text counts"
    assert best_for(0.6 / n**0.05 / v**0.08 * np.exp(-0.03 * np.log(n) * np.log(v))).name == "interaction"
    for balance in (0.5, 20.0, 3000.0):
        assert best_for(1 - 0.3 * n**0.1 * (v * (v + balance) / (1 + balance)) ** 0.06).name == "varying"


def test_the_constants_are_those_of_the_formula():
    """A / N^alpha + B / V^beta + D, each apart from the others."""
    n, v = np.meshgrid(WIDE_SIZES, WIDE_COUNTS, indexing="ij")
    error = 0.2 / n**0.9 + 0.3 / v**0.5 + 0.1
    table = parse_scores({"params_b": WIDE_SIZES, "visual_tokens": WIDE_COUNTS, "score": 1 - error})
    found = {rival.name: rival for rival in compare(table, fit_law(table))}["additive"]
    wanted = {"A": 0.2, "alpha": 0.9, "B": 0.3, "beta": 0.5, "D": 0.1}
    assert found.constants == pytest.approx(wanted, rel=1e-3)


def test_the_varying_exponent_is_that_of_its_paper():
    """c / n^alpha(n) with alpha(n) as it is written there, of one size of LLM."""
    n, c, beta, balance = WIDE_COUNTS[1:].astype(float), 0.3, 0.12, 20.0
    alpha = beta / 2 * np.log((1 + balance) / (n + balance)) / np.log(n) - beta / 2
    score = np.stack([c / n**alpha, 1.1 * c / n**alpha])
    table = parse_scores({"params_b": [1, 4], "visual_tokens": n, "score": score})
    found = {rival.name: rival for rival in compare(table, fit_law(table))}["varying"]
    wanted = {"S": c, "alpha": np.log(1.1) / np.log(4), "beta": beta, "n0": balance}
    assert found.sse < 1e-12 and found.constants == pytest.approx(wanted, rel=1e-3)
    assert found.formula == "1 - S N^alpha (V (V + n0) / (1 + n0))^(beta / 2)"


def test_a_law_without_room_has_no_weight():
    """Of six scores, where four constants leave no degree of freedom for the criterion."""
    table = parse_scores(
        {"params_b": [0.5, 1, 7], "visual_tokens": [1, 36], "score": [[0.3, 0.36], [0.35, 0.4], [0.4, 0.47]]}
    )
    rivals = compare(table, fit_law(table))
    assert {rival.weight for rival in rivals if math.isinf(rival.aicc)} == {0.0}
    assert sum(rival.weight for rival in rivals) == pytest.approx(1)


def test_criterion_by_hand_and_without_room():
    assert aicc(0.02, 20, 3) == pytest.approx(20 * math.log(0.001) + 8 + 40 / 15)
    assert aicc(0.02, 6, 4) == math.inf
