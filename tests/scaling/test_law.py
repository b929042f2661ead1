import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.errors import UserError
from scaling.law import Law, Params, error, gradient

PUBLISHED = Law(Params(0.557, 0.077, 0.015, 0.0333), "V", 50)


def best_split(law, budget, points=20001):
    """Error and V that are best on a fine grid of V, where N spends the whole budget at 2 N (Q + V) FLOPs."""
    v = np.geomspace(1, 576, points)
    predicted = law.error(budget / (2e9 * (law.query_tokens + v)), v)
    k = int(np.argmin(predicted))
    return float(predicted[k]), float(v[k])


def test_value_by_hand():
    law = Law(Params(0.5, 1.0, 0.5, 0.1), "V", 50)
    np.testing.assert_allclose(law.error(2.0, 4.0), 0.5 / 2 / 2 + 0.1)
    both = Law(law.params, "Q+V", 5)
    np.testing.assert_allclose(both.error(2.0, 4.0), 0.5 / 2 / 3 + 0.1)


def test_sizes_and_counts_broadcast_in_float64():
    predicted = PUBLISHED.error(np.array([[1.0], [2.0]]), np.array([1, 4, 9]))
    assert predicted.shape == (2, 3)
    assert predicted.dtype == np.float64


def test_published_pair_gives_twelve_tokens():
    assert PUBLISHED.optimal_visual_tokens() == pytest.approx(12.1, abs=0.05)


@given(
    alpha=st.floats(0.02, 0.5),
    share=st.floats(0.05, 0.9),
    query=st.floats(1, 300),
    floor=st.floats(0, 0.3),
    budget=st.floats(10, 14),
)
def test_closed_form_agrees_with_numerical_search(alpha, share, query, floor, budget):
    law = Law(Params(0.6, alpha, alpha * share, floor), "V", query)
    error, visual_tokens = best_split(law, 10**budget)
    # The error is flat near its minimum, so compare what V costs, then V at the grid's fineness.
    closed = law.optimal_visual_tokens(1, 576)
    at_closed = law.error(10**budget / (2e9 * (query + closed)), closed)
    assert error == pytest.approx(float(at_closed), rel=1e-8)
    assert visual_tokens == pytest.approx(closed, rel=5e-3)


@given(alpha=st.floats(0.01, 0.3), beta=st.floats(0.01, 0.3), query=st.floats(1, 200))
def test_corner_cases_go_to_the_right_end(alpha, beta, query):
    both = Law(Params(0.6, alpha, beta, 0.0), "Q+V", query)
    if abs(alpha - beta) > 1e-3:
        _, numerical = best_split(both, 1e12, points=501)
        assert both.optimal_visual_tokens(1, 576) == pytest.approx(numerical)
    law = Law(Params(0.6, min(alpha, beta), max(alpha, beta), 0.0), "V", query)
    assert law.optimal_visual_tokens(1, 576) == 576
    assert best_split(law, 1e12, points=501)[1] == pytest.approx(576)


def test_no_text_means_fewest_tokens():
    assert Law(Params(0.6, 0.07, 0.015, 0.0), "V", 0).optimal_visual_tokens(1, 576) == 1
    assert math.isinf(Law(Params(0.6, 0.03, 0.04, 0.0)).optimal_visual_tokens())


@pytest.mark.parametrize("wrong", [{"tokens": "T"}, {"query_tokens": -1}, {"query_tokens": float("nan")}])
def test_wrong_convention_is_refused(wrong):
    with pytest.raises(UserError):
        Law(Params(1, 0, 0, 0), **wrong)


def test_a_negative_coefficient_is_no_law():
    with pytest.raises(UserError, match=r"A must be at least 0, not -0.1"):
        Law(Params(-0.1, 0.1, 0.1, 0.5))
    assert Law(Params(0.0, 0.1, 0.1, 0.5)).error(7, 36) == 0.5


def test_what_lies_outside_of_a_fit():
    law = Law(PUBLISHED.params, "Q+V", 50)
    reach = law.reach([0.5, 7], [1, 576])
    assert reach == ((0.5, 7), (51, 626))
    # A size that people write down is rounded.
    sizes = np.array([0.4, 0.5 * (1 - 1e-12), 1, 7 * (1 + 1e-12), 14])
    assert reach.lacks(sizes, 51)[0].tolist() == [True, False, False, False, True]
    # With another Q the same V are other T.
    longer = Law(law.params, "Q+V", 600)
    assert reach.lacks(1, longer.total(np.array([1, 26, 27])))[1].tolist() == [False, False, True]
    assert PUBLISHED.reach([0.5, 7], [1, 576]).tokens == (1, 576)


@given(
    A=st.floats(0.1, 1),
    alpha=st.floats(0, 0.5),
    beta=st.floats(0, 0.5),
    D=st.floats(0, 0.3),
    n=st.floats(0.1, 20),
)
def test_derivatives_are_those_of_small_steps(A, alpha, beta, D, n):
    x, t = np.array([math.log(A), alpha, beta, D]), 36.0

    def at(x):
        return float(error(Params(math.exp(x[0]), *x[1:]), n, t))

    steps = 1e-5 * np.eye(4)
    expected = [(at(x + step) - at(x - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient(Params(A, alpha, beta, D), n, t), expected, rtol=1e-5, atol=1e-7)
