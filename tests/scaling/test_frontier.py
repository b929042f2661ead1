import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.errors import UserError
from scaling.fit import fit_law
from scaling.frontier import (
    Choices,
    law_choices,
    measured_choices,
    measured_cost,
    pareto,
    published_cost,
    recommend,
)
from scaling.scores import published


def test_published_cost_by_hand():
    assert published_cost(50)(7, 14) == 2 * 7e9 * 64


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=40))
def test_frontier_keeps_exactly_the_unbeaten(points):
    flops, error = np.array(points, float).T
    front = pareto(Choices(flops, flops, flops, error))
    kept = set(zip(front.flops, front.error, strict=True))
    for f, e in points:
        beaten = any((g <= f and d <= e) and (g, d) != (f, e) for g, d in points)
        assert ((f, e) in kept) != beaten
    assert np.all(np.diff(front.flops) > 0)
    assert np.all(np.diff(front.error) < 0)


def test_frontier_of_the_law_sits_at_the_closed_form():
    law = fit_law(published("general")).law
    sizes = np.geomspace(0.05, 20, 500)
    front = pareto(law_choices(law, sizes, np.arange(1, 101), published_cost(50)))
    # Away from both ends of the size range every frontier point should sit near V*.
    inner = front.visual_tokens[(front.flops > 1e11) & (front.flops < 1e12)]
    assert np.median(inner) == pytest.approx(law.optimal_visual_tokens(), abs=1.0)


def test_recommendation_is_the_best_affordable():
    table = published("general")
    choices = measured_choices(table, published_cost(50))
    best = recommend(choices, 1e12)
    affordable = choices.error[choices.flops <= 1e12]
    assert best.error == affordable.min()
    assert best.flops <= 1e12
    cheapest = recommend(choices, choices.flops.min())
    assert (cheapest.params_b, cheapest.visual_tokens) == (0.5, 1)
    with pytest.raises(UserError, match="cheapest"):
        recommend(choices, 1e9)


def test_measured_cells_skip_the_missing():
    table = published("ocr").without_flagged()
    assert len(measured_choices(table, published_cost(50)).error) == 26


def test_counted_flops_replace_the_formula():
    counted = np.array([[10.0, 20.0], [30.0, 40.0]])
    cost = measured_cost([1, 2], [4, 16], counted)
    np.testing.assert_array_equal(cost(np.array([[1], [2]]), np.array([4, 16])), counted)
    with pytest.raises(UserError, match="3B with 4"):
        cost(3, 4)
