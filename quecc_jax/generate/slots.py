"""A fixed number of answers under way, each in a slot of one state: they come and go between decode steps.

A slot is a row of the state and of its cache. The cache has a front, where prompts stand, and behind it a ring, where
the newest token of every slot is written at one place, the same for all; behind the last place follows the first, by
then of an answer that has ended, for no answer is longer than the ring. Attention goes by segments and positions, so
it does not matter where in the ring an answer began.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from quecc_jax.generate.decode import Draws, Params, State, advance
from quecc_jax.generate.sampling import per_row
from quecc_jax.models.decoder import Cache, empty_cache
from quecc_jax.models.vlm import VLM


class Room(NamedTuple):
    """Positions of a slot."""

    front: int
    """Of the longest prompt, padded."""
    ring: int
    """Of the longest answer."""

    def holds(self, other: "Room") -> bool:
        """Whether there is room for as much as in the other."""
        return self.front >= other.front and self.ring >= other.ring

    def with_room(self, other: "Room") -> "Room":
        """Room for both."""
        return Room(max(self.front, other.front), max(self.ring, other.ring))


def empty_slots(model: VLM, ends: tuple[int, ...], slots: int, room: Room) -> State:
    """A state of `slots` rows, none of which answers anything."""
    config = model.config
    none = jnp.zeros((slots,), jnp.int32)
    draws = Draws(
        per_row([None] * slots),
        jax.random.split(jax.random.key(0), slots),
        jnp.zeros((slots, config.decoder.vocab_size), bool),
    )
    cache = empty_cache(config.decoder, slots, sum(room), jnp.dtype(config.dtype))
    cache = cache._replace(length=jnp.int32(room.front))
    return State(none + ends[0], none == 0, none, none, none, draws, cache)


def insert(state: State, fresh: State, rows: jax.Array) -> State:
    """The state with answers that have just begun.

    Args:
      state: of some slots.
      fresh: of fewer rows, with prompts no longer than the state's front, and nothing behind them.
      rows: int32, the slot of each of its rows; any number beyond the slots leaves a row out.
    """

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[rows].set(new, mode="drop")

    def put_front(old: jax.Array, new: jax.Array) -> jax.Array:
        return old.at[rows, :, : new.shape[2]].set(new, mode="drop")

    def put_all(old: jax.Array, new: jax.Array) -> jax.Array:
        return put(old, jnp.pad(new, ((0, 0), (0, old.shape[1] - new.shape[1]))))

    held, new = state.cache, fresh.cache
    cache = Cache(
        jax.tree.map(put_front, held.keys, new.keys),
        jax.tree.map(put_front, held.values, new.values),
        # What the slot's last answer left is of no segment from now on.
        put_all(held.segments, new.segments),
        put_all(held.positions, new.positions),
        held.length,
    )
    settings = jax.tree.map(put, (*state,)[:-1], (*fresh,)[:-1])
    return State._make((*settings, cache))


def refit(state: State, old: Room, new: Room) -> State:
    """The state with room of another size, which its prompts and answers must fit in."""

    def moved(held: jax.Array) -> jax.Array:
        # Of keys and values [B, kv_heads, T, head_dim], and of what stands beside them [B, T].
        axis = held.ndim // 2
        front, ring = jnp.split(held, [old.front], axis)
        # The oldest first, so that they are the first to be written over, or to be left out.
        ring = jnp.roll(ring, old.front - state.cache.length, axis)
        ring = jax.lax.slice_in_dim(ring, max(0, old.ring - new.ring), old.ring, axis=axis)
        return jnp.concatenate([_resized(front, new.front, axis), _resized(ring, new.ring, axis)], axis)

    at = new.front + (old.ring if new.ring > old.ring else 0)
    held: Cache = jax.tree.map(moved, state.cache._replace(length=state.cache.segments))
    return state._replace(cache=held._replace(length=jnp.int32(at)))


def _resized(x: jax.Array, length: int, axis: int) -> jax.Array:
    """x with its first positions alone, or with zeros behind them."""
    fill = [(0, 0)] * x.ndim
    fill[axis] = (0, max(0, length - x.shape[axis]))
    return jnp.pad(jax.lax.slice_in_dim(x, 0, min(length, x.shape[axis]), axis=axis), fill)


def go_on(
    model: VLM,
    ends: tuple[int, ...],
    params: Params,
    state: State,
    ended: jax.Array,
    most: jax.Array,
    steps: int,
    front: int,
) -> tuple[jax.Array, State]:
    """`advance` of slots, of which those `ended` bool [B] have been found to be at their end by the host."""
    return advance(model, ends, params, state._replace(done=state.done | ended), steps, front, most)
