"""Exact match, groups, and the standard error against its definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.evaluate.answers import Answer
from quecc_jax.evaluate.score import accuracy, by_kind, is_exact, standard_error


def answer(prediction: str, truth: str, kind: str = "a") -> Answer:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": truth}]
    return Answer({"conversations": turns, "kind": kind}, prediction)


@pytest.mark.parametrize(
    "prediction, truth, same",
    [
        ("red", "red", True),
        ("Red ", "red", True),
        ("3  5 7", "3 5 7", True),
        ("", "", True),
        ("red.", "red", False),
        ("3 57", "3 5 7", False),
        ("red red", "red", False),
        ("", "red", False),
    ],
)
def test_exact_means_the_same_words(prediction, truth, same):
    assert is_exact(answer(prediction, truth)) is same
    assert answer(prediction, truth).question == "what?"


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["cell", "count", "row"]))))
def test_accuracy_is_the_share_of_each_group(outcomes):
    answers = [answer("yes", "yes" if hit else "no", kind) for hit, kind in outcomes]
    groups = by_kind(answers)
    assert list(groups) == sorted({kind for _, kind in outcomes})
    for kind, group in groups.items():
        hits, score = [hit for hit, own in outcomes if own == kind], accuracy(group)
        assert score["questions"] == len(hits) and math.isclose(score["accuracy"], np.mean(hits))
        assert score["standard_error"] == standard_error(score["accuracy"], len(hits))


@pytest.mark.parametrize("hits", range(9))
def test_the_standard_error_is_the_spread_of_the_share(hits):
    count, p = 8, hits / 8
    variance = 0.0
    for k in range(count + 1):
        probability = math.comb(count, k) * p**k * (1 - p) ** (count - k)
        variance += probability * (k / count - p) ** 2
    assert math.isclose(standard_error(p, count), math.sqrt(variance), abs_tol=1e-12)
