"""The order of rows: every epoch whole and new, every stretch alike however it is asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.data.sampler import GOLDEN, Sampler, mixed_up, permutation, source_and_row


def test_a_permutation_holds_everything_once_and_never_changes():
    first = permutation(1000, 7, 0, 1)
    assert np.array_equal(np.sort(first), np.arange(1000))
    for other in (permutation(1000, 7, 0, 2), permutation(1000, 7, 1, 1), permutation(1000, 8, 0, 1)):
        # Two random orders of 1000 agree at about one place.
        assert (first == other).sum() < 12
    # Written down once: runs continue only under the order that they began with.
    assert permutation(12, 7, 0, 1).tolist() == [11, 3, 4, 5, 8, 2, 0, 9, 7, 6, 10, 1]


def test_places_are_uniform():
    places = np.array([permutation(8, seed) for seed in range(4000)])
    counts = np.array([np.bincount(column, minlength=8) for column in places.T])
    # Chi-square with 49 degrees of freedom stays below 94 with probability 0.9999.
    assert ((counts - 500) ** 2 / 500).sum() < 94


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans(), st.data())
def test_any_stretch_is_a_part_of_the_same_order(sizes, mixed, data):
    weights = data.draw(st.lists(st.floats(0.05, 5), min_size=len(sizes), max_size=len(sizes)))
    order = Sampler(sizes, weights if mixed else None, 3)
    whole = order(0, 120)
    start = data.draw(st.integers(0, 119))
    stop = data.draw(st.integers(start, 120))
    assert np.array_equal(order(start, stop), whole[start:stop])


def test_joined_sources_have_epochs_together():
    order = Sampler([5, 8], None, 0)
    epochs = order(0, 39).reshape(3, 13)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(13), (3, 1)))
    assert not np.array_equal(epochs[0], epochs[1])
    assert order.ids(np.array([0, 4, 5, 12, -1])).tolist() == [0, 4, 1 << 32, (1 << 32) + 7, -1]


@pytest.mark.parametrize("weights", [[3.0, 1.0], [1.0, 1e-3], [0.2, 0.7]])
def test_weights_are_shares_of_every_stretch_and_sources_keep_their_epochs(weights):
    order = Sampler([7, 10], weights, 0)
    rows = order(0, 5000)
    share = weights[0] / sum(weights)
    for start, stop in ((0, 5000), (137, 377), (4000, 4010)):
        assert abs((rows[start:stop] < 7).sum() - share * (stop - start)) <= 1.5
    for source, size in ((rows[rows < 7], 7), (rows[rows >= 7] - 7, 10)):
        whole = source[: len(source) // size * size].reshape(-1, size)
        assert np.array_equal(np.sort(whole, axis=1), np.tile(np.arange(size), (len(whole), 1)))


def test_the_mixing_is_splitmix64_s():
    """The generator's first numbers from state 0, as its authors' C program gives them."""
    first = mixed_up(GOLDEN * np.arange(1, 4, dtype=np.uint64))
    assert [hex(x) for x in first] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_identities_are_taken_apart_again():
    order = Sampler([5, 8], None, 0)
    found = [source_and_row(int(identity)) for identity in order.ids(np.arange(13))]
    assert found == [(0, row) for row in range(5)] + [(1, row) for row in range(8)]
    assert source_and_row((3 << 32) + 2**32 - 1) == (3, 2**32 - 1)


def test_rows_come_in_the_middle_of_their_turns():
    """The j-th of a source with share w at (j + 1/2) / w: 2/3, 2, 10/3, ... and 2, 6, ..., the first source first
    where two come at once."""
    rows = Sampler([100, 100], [3.0, 1.0], 0)(0, 12)
    assert (rows >= 100).astype(int).tolist() == [0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0]
