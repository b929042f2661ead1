"""Slots of one state: what is put in, what moves when the room changes, and what is written over first."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.generate.decode import Draws, State
from quecc_jax.generate.sampling import per_row
from quecc_jax.generate.slots import Room, insert, refit
from quecc_jax.models.decoder import Cache


def state_of(values: np.ndarray, length: int) -> State:
    """A state whose cache holds the same numbers int32 [B, T] in every array."""
    rows = len(values)
    numbers, held = jnp.arange(rows), jnp.asarray(values)
    draws = Draws(
        per_row([None] * rows), jax.random.split(jax.random.key(1), rows), jnp.ones((rows, 5), bool)
    )
    wide = held[:, None, :, None].astype(jnp.float32)
    cache = Cache((wide, wide + 0.5), (-wide, 2 * wide), held, 3 * held, jnp.int32(length))
    return State(numbers, numbers > 0, numbers, numbers, numbers, draws, cache)


def ages(cache: Cache, front: int) -> list[int]:
    """What the ring holds, in the order in which it is written over."""
    ring = np.asarray(cache.segments)[0, front:].tolist()
    at = int(cache.length) - front
    return ring[at:] + ring[:at]


SIZES = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.data())
def test_with_other_room_the_oldest_are_still_written_over_first(front, ring, more, other, data):
    """Prompts stay where they are; behind them empty places come first, then old tokens, then new ones."""
    at = data.draw(st.integers(0, ring - 1))
    new = Room(front + more, other)
    values = np.arange(1, front + ring + 1, dtype=np.int32)[None]
    before = state_of(values, front + at)
    written = ages(before.cache, front)
    after = refit(before, Room(front, ring), new).cache
    assert after.segments.shape == (1, sum(new))
    assert np.asarray(after.segments)[0, :front].tolist() == list(range(1, front + 1))
    assert not np.asarray(after.segments)[0, front : new.front].any()
    left = ages(after, new.front)
    assert left == max(0, other - ring) * [0] + written[max(0, ring - other) :]
    np.testing.assert_array_equal(after.keys[0][:, 0, :, 0], after.segments)
    np.testing.assert_array_equal(after.values[1][:, 0, :, 0], 2 * after.segments)
    np.testing.assert_array_equal(after.positions, 3 * after.segments)
    assert new.front <= int(after.length) < sum(new)


def test_a_slot_keeps_nothing_of_its_last_answer_but_what_is_of_no_segment():
    held = state_of(np.full((4, 9), 7, np.int32), 5)
    fresh = state_of(np.array([[1, 1, 1], [2, 2, 0], [9, 9, 9]], np.int32), 0)
    rows = np.array([2, 0, 4], np.int32)
    made = jax.jit(insert)(held, fresh, rows)
    assert np.asarray(made.cache.segments).tolist() == [
        [2, 2, 0] + 6 * [0],
        9 * [7],
        [1, 1, 1] + 6 * [0],
        9 * [7],
    ]
    assert int(made.cache.length) == 5
    assert made.token.tolist() == [1, 1, 0, 3] and made.done.tolist() == [True, True, False, True]
    assert made.draws is not None and fresh.draws is not None
    fresh_keys = jax.random.key_data(fresh.draws.keys)
    np.testing.assert_array_equal(jax.random.key_data(made.draws.keys)[np.array([2, 0])], fresh_keys[:2])
    np.testing.assert_array_equal(made.cache.keys[0][2, 0, :3, 0], [1, 1, 1])
    np.testing.assert_array_equal(made.cache.keys[0][1, 0, :, 0], held.cache.keys[0][1, 0, :, 0])
