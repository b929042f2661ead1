import math

import numpy as np
import pytest

from scaling.fit import fit_law
from scaling.rivals import aicc, compare
from scaling.table import parse_scores, published

SIZES, COUNTS = np.array([0.5, 1.8, 4, 7]), np.array([1, 4, 16, 36, 64, 144, 576])


def best_for(error, noise=5e-4):
    score = 1 - error + noise * np.random.default_rng(0).normal(size=error.shape)
    table = parse_scores({"params_b": SIZES, "visual_tokens": COUNTS, "score": score})
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
    n, v = SIZES[:, None], COUNTS[None, :]
    assert best_for(0.3 / n**0.4 + 0.4 / v**0.3 + 0.1).name == "additive"
    assert best_for(0.6 - 0.05 * np.log(n) - 0.03 * np.log(v)).name == "log-linear"
    assert best_for(0.8 / n**0.2 / v**0.1).name == "no floor"
    assert best_for(0.7 / n**0.3 / (50 + v) ** 0.25 + 0.2).name == "text counts"
    assert best_for(0.6 / n**0.05 / v**0.08 * np.exp(-0.03 * np.log(n) * np.log(v))).name == "interaction"


def test_criterion_by_hand_and_without_room():
    assert aicc(0.02, 20, 3) == pytest.approx(20 * math.log(0.001) + 8 + 40 / 15)
    assert aicc(0.02, 6, 4) == math.inf
