"""Shared measures against cases computed by hand from their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.evaluate.bootstrap import evaluate, ratio
from quecc_jax.evaluate.metrics import (
    anls,
    edit_distance,
    normalise_answer,
    relaxed_match,
    says_no,
    vqa_accuracy,
    vqa_challenge_accuracy,
)
from quecc_jax.evaluate.tasks.base import percentages


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("The Red Car.", "red car"),
        ("an apple, a pear", "apple pear"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("dont know", "don't know"),
        ("hadntve", "hadntve"),  # Two apostrophes missing: the table knows one.
        ("hadn'tve", "hadn't've"),
        ("it's", "it 's"),  # "'s" is set apart before contractions are looked up.
        ("somebody'd", "somebodyd"),
        ("1,000 people", "1000 people"),
        ("3.5 m", "3.5 m"),
        ("v. small", "v small"),
        ("black/white", "black white"),  # No blank beside the mark: it becomes one.
        ("black / white", "black white"),
        ("well-lit - room", "welllit room"),  # One blank beside a mark drops all of its kind.
        ("red\nblue", "red blue"),
        ("what?", "what"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_the_vqa_challenge_does(text, wanted):
    assert normalise_answer(text) == wanted


def test_at_most_32_periods_are_dropped_as_in_the_official_script():
    assert normalise_answer("a." * 40).count(".") == 8


def test_vqa_accuracy_leaves_one_human_out():
    humans = ["red"] * 2 + ["blue"] * 8
    # Left out one of the two: 1/3; left out one of the eight: 2/3. (2 * 1/3 + 8 * 2/3) / 10 = 0.6.
    assert vqa_accuracy("Red.", humans) == pytest.approx(0.6)
    assert vqa_accuracy("blue", humans) == 1.0
    assert vqa_accuracy("green", humans) == 0.0
    assert vqa_accuracy("the red", ["red"] + ["x"] * 9) == pytest.approx(0.3)  # 9 * 1/3 / 10
    assert vqa_accuracy("red", ["red"] * 3 + ["x"] * 7) == pytest.approx(0.9)  # (3 * 2/3 + 7 * 1) / 10
    assert vqa_accuracy("unanswerable", ["unanswerable"] * 10) == 1.0
    assert vqa_accuracy("red", []) == 0.0


def test_anls_is_the_similarity_to_the_nearest_truth_above_one_half():
    assert anls("Hello", ["hello"]) == 1.0
    assert anls("helo", ["hello", "world"]) == pytest.approx(0.8)
    assert anls("abcd", ["abxy"]) == 0.5  # Exactly the threshold counts.
    assert anls("abcde", ["abxyz"]) == 0.0
    # As near as it gets, 49 and 50 letters of 99.
    assert anls("a" * 99, ["a" * 49 + "b" * 50]) == 0.0
    assert anls("a" * 99, ["a" * 50 + "b" * 49]) == pytest.approx(50 / 99)
    assert anls("", ["x"]) == 0.0
    assert anls("strasse", ["straße"]) == pytest.approx(1 - 2 / 7)
    assert anls("ß", ["ß s"]) == pytest.approx(0.5)  # Of 4 capitals, two edits: not 1 - 2 / 3.
    assert anls("two  words", ["two words"]) == 1.0


@given(st.text(max_size=12), st.text(max_size=12))
def test_edit_distance_is_a_distance(a, b):
    distance = edit_distance(a, b)
    assert distance == edit_distance(b, a) and (distance == 0) == (a == b)
    assert abs(len(a) - len(b)) <= distance <= max(len(a), len(b))


def test_edit_distance_by_hand():
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3


@pytest.mark.parametrize(
    "answer, truth, right",
    [
        ("104", "100", True),
        ("105", "100", True),
        ("106", "100", False),
        ("95", "100", True),
        ("94", "100", False),
        ("12%", "0.12", True),
        ("12%", "12", False),
        ("Yes", "yes", True),
        ("no", "yes", False),
        ("0", "0", True),
        ("0.01", "0", False),
        ("-100", "-104", True),
        ("1,000", "1000", False),
    ],
)
def test_relaxed_match_allows_five_percent(answer, truth, right):
    assert relaxed_match(answer, truth) is right


@pytest.mark.parametrize(
    "text, no",
    [
        ("No", True),
        ("no, it is not", True),
        ("Yes", False),
        ("There is not a dog", True),
        ("Yes. No dog.", False),
        ("NO", False),
        ("nothing", False),
        ("", False),
    ],
)
def test_the_first_sentence_says_no(text, no):
    assert says_no(text) is no


def test_the_vqa_challenge_leaves_unanimous_answers_as_they_are():
    assert vqa_challenge_accuracy("two", ["2"] * 10) == 0.0 and vqa_accuracy("two", ["2"] * 10) == 1.0
    assert vqa_challenge_accuracy("two", ["2"] * 10, always=True) == 1.0
    assert vqa_challenge_accuracy("two", ["2"] * 9 + ["3"]) == 1.0
    assert vqa_challenge_accuracy("Red", ["red"] * 10) == 0.0
    assert vqa_challenge_accuracy("a\nb ", ["a b"] * 10) == 1.0


def test_ratio_says_what_an_empty_sum_gives():
    np.testing.assert_array_equal(ratio([1, 0], [2, 0], empty=0.0), [0.5, 0.0])
    assert math.isnan(ratio(0, 0))


def test_the_bootstrap_error_of_a_mean_is_its_standard_error():
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.3
    tallies = [
        {"score": float(r), "count": 1.0, "count/a": float(i < 50), "score/a": float(r and i < 50)}
        for i, r in enumerate(right)
    ]
    found = evaluate(tallies, percentages, resamples=2000)
    share = right.mean()
    assert found["accuracy"][0] == pytest.approx(100 * share)
    assert found["accuracy"][1] == pytest.approx(100 * math.sqrt(share * (1 - share) / 400), rel=0.06)
    assert found["accuracy/a"][0] == pytest.approx(100 * right[:50].mean())
    assert evaluate(tallies, percentages, resamples=50, seed=3) == evaluate(tallies, percentages, 50, 3)
    assert evaluate(tallies, percentages, 50, 4) != evaluate(tallies, percentages, 50, 3)
    assert evaluate([], percentages) == {}


def test_a_metric_that_no_replicate_defines_has_no_error():
    found = evaluate([{"score": 1.0, "count": 1.0}], percentages, resamples=5)
    assert found["accuracy"] == (100.0, 0.0)
