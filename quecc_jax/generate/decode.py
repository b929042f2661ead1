"""Decoding with a key-value cache under fixed shapes: pure functions of the parameters and a state."""

from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.generate.sampling import Sampling, choose
from quecc_jax.models.decoder import Cache, empty_cache, unstack
from quecc_jax.models.vlm import VLM, Visual
from quecc_jax.sharding import RULES

P = ParamSpec("P")
R = TypeVar("R")
Params = dict[str, PyTree]
"""A tree of arrays by top-level name."""


class Draws(NamedTuple):
    """How the tokens of rows are drawn."""

    sampling: Sampling
    """Settings of each row, arrays [B]."""
    keys: jax.Array
    """Typed random keys [B]."""
    seen: jax.Array
    """bool [B, vocab], tokens of prompt and answer."""


class State(NamedTuple):
    """Answers under way."""

    token: jax.Array
    """int32 [B], the newest token of each row; EOS where the row has ended."""
    done: jax.Array
    """bool [B]"""
    step: jax.Array
    """int32 [B], tokens chosen so far."""
    lengths: jax.Array
    """int32 [B], tokens of the prompts."""
    budget: jax.Array
    """int32 [B], tokens of the longest answers that are asked for."""
    draws: Draws | None
    """None when the choice is greedy."""
    cache: Cache


class Reading(NamedTuple):
    """Prompts that are being read."""

    x: jax.Array
    """[B, S, M], what the decoder reads."""
    positions: jax.Array
    """int32 [B, S]"""
    segments: jax.Array
    """int32 [B, S]; 0 is padding."""
    text: jax.Array
    """int32 [B, S], the tokens of text; -1 elsewhere."""
    hidden: jax.Array
    """[B, 1, M], hidden states of the last tokens of the prompts that have been read to their ends."""
    cache: Cache


def decoding_params(params: Params, config: ModelConfig) -> Params:
    """Parameters in the form that decoding reads fastest, by top-level name.

    The decoder's layers are unstacked. What a bfloat16 model computes with in bfloat16 is stored so:
    parameters are read once per token, and nothing else costs as much. Parameters that have this form already are
    returned as they are.
    """
    return in_compute_type(params | {"decoder": unstack(params["decoder"])}, config)


def in_compute_type(params: Params, config: ModelConfig) -> Params:
    """Parameters, or stand-ins of them, in the type that the model computes with. Norms stay float32, and matrices of
    few bits as they are."""
    if config.dtype == "float32":
        return params
    dtype = jnp.dtype(config.dtype)

    def cast(path: tuple[jax.tree_util.DictKey, ...], leaf: PyTree) -> PyTree:
        is_norm, is_stored = any("norm" in key.key for key in path), path[-2].key == "kernel"
        if is_norm or is_stored or leaf.dtype == dtype:
            return leaf
        return leaf.update(dtype=dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def begin(
    model: VLM,
    ends: tuple[int, ...],
    params: Params,
    batch: Batch,
    visual: Visual | None,
    budget: jax.Array,
    sampling: Sampling | None,
    keys: jax.Array | None,
    new: int,
) -> State:
    """Reads the prompts and chooses each row's first token.

    Args:
      model: an unrolled VLM.
      ends: tokens that end an answer, EOS first; the others come out as EOS.
      batch: prompts that end where their answers begin, padded at the end; rows without any token
        are done at once.
      visual: the batch's visual tokens where they are known already.
      budget: int32 [B], tokens that answers have at most.
      sampling: arrays [B]; None is greedy.
      keys: typed random keys [B]; needed unless greedy.
      new: positions that the cache has behind the prompts.
    """
    reading = open_prompts(model, params, batch, visual, new)
    length = batch.tokens.shape[1]
    reading = read(model, params, reading, 0, length, first=True)
    return first_token(model, ends, params, reading, budget, sampling, keys)


def open_prompts(model: VLM, params: Params, batch: Batch, visual: Visual | None, new: int) -> Reading:
    """Prompts with nothing read of them; the arguments are as for `begin`."""
    config = model.config
    rows, length = batch.tokens.shape
    cache = empty_cache(config.decoder, rows, length + new, jnp.dtype(config.dtype))
    x = _apply(model, params, VLM.splice, batch, visual)
    hidden = jnp.zeros((rows, 1, config.decoder.width), jnp.dtype(config.dtype))
    text = jnp.where((batch.segments > 0) & (batch.slots < 0), batch.tokens, -1)
    return Reading(x, batch.positions, batch.segments, text, hidden, cache)


def read(
    model: VLM, params: Params, reading: Reading, start: jax.Array | int, length: int, first: bool = False
) -> Reading:
    """Reads `length` further positions of the prompts, from `start` on.

    Args:
      first: it is all of them, and nothing was read before.
    """
    part = [jax.lax.dynamic_slice_in_dim(a, start, length, axis=1) for a in reading[:3]]
    hidden, cache = _apply(model, params, VLM.append, *part, reading.cache, first)
    last = jnp.maximum(jnp.sum(reading.segments > 0, axis=1) - 1, 0)[:, None, None] - start
    here = jnp.take_along_axis(hidden, jnp.clip(last, 0, length - 1), axis=1)
    inside = (last >= 0) & (last < length)
    return reading._replace(hidden=jnp.where(inside, here, reading.hidden), cache=cache)


def first_token(
    model: VLM,
    ends: tuple[int, ...],
    params: Params,
    reading: Reading,
    budget: jax.Array,
    sampling: Sampling | None,
    keys: jax.Array | None,
) -> State:
    """The state of rows whose prompts have been read, with their first tokens; the arguments are as for `begin`."""
    rows = reading.text.shape[0]
    lengths = jnp.sum(reading.segments > 0, axis=1)
    draws = None
    if sampling is not None:
        assert keys is not None
        seen = jnp.zeros((rows, model.config.decoder.vocab_size), bool)
        seen = seen.at[jnp.arange(rows)[:, None], jnp.maximum(reading.text, 0)].max(reading.text >= 0)
        draws = Draws(sampling, keys, seen)
    none = jnp.zeros((rows,), jnp.int32)
    state = State(none, lengths == 0, none, lengths, budget, draws, reading.cache)
    return _choose(model, ends, params, reading.hidden, state)


def advance(
    model: VLM,
    ends: tuple[int, ...],
    params: Params,
    state: State,
    steps: int,
    front: int | None = None,
    most: jax.Array | None = None,
) -> tuple[jax.Array, State]:
    """The next tokens int32 [B, steps], EOS from a row's end on; stops early when every row has ended.

    Args:
      model, ends, params: as for `begin`.
      steps: tokens that are decoded at most; another number is another program.
      most: int32 [], how many of them this time, where it is not all; behind these stands EOS.
      front: positions of the cache in front of those where tokens go round: behind the last one they are written
        here. None where they never come so far.
    """
    rows = state.token.shape[0]
    out = jnp.full((rows, steps), ends[0], jnp.int32)
    limit = steps if most is None else jnp.minimum(most, steps)

    def unfinished(carry: tuple[jax.Array, jax.Array, State]) -> jax.Array:
        return (carry[0] < limit) & ~jnp.all(carry[2].done)

    def decode(carry: tuple[jax.Array, jax.Array, State]) -> tuple[jax.Array, jax.Array, State]:
        number, out, state = carry
        positions = (state.lengths + state.step - 1)[:, None]
        inputs = state.token[:, None], positions, jnp.ones_like(positions), state.cache
        hidden, cache = _apply(model, params, VLM.extend, *inputs)
        if front is not None:
            room = cache.segments.shape[1]
            cache = cache._replace(length=jnp.where(cache.length == room, front, cache.length))
        state = _choose(model, ends, params, hidden, state._replace(cache=cache))
        return number + 1, out.at[:, number].set(state.token), state

    _, out, state = jax.lax.while_loop(unfinished, decode, (jnp.int32(0), out, state))
    return out, state


def _choose(model: VLM, ends: tuple[int, ...], params: Params, hidden: jax.Array, state: State) -> State:
    """The state with the token that follows hidden [B, 1, M]."""
    logits = _apply(model, params, VLM.logits, hidden[:, 0])
    draws = state.draws
    if draws is None:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        token = choose(logits, draws.seen, draws.sampling, draws.keys, state.step)
        draws = draws._replace(seen=draws.seen.at[jnp.arange(len(token)), token].set(True))
    token = jnp.where(state.done, ends[0], token)
    step = state.step + 1
    done = state.done | jnp.isin(token, jnp.array(ends))
    token = jnp.where(done, ends[0], token)
    return state._replace(token=token, done=done | (step >= state.budget), step=step, draws=draws)


def _apply(model: VLM, params: Params, method: Callable[..., object], *inputs: object) -> PyTree:
    return model.apply({"params": params}, *inputs, method=method)


def on_mesh(jitted: Callable[P, R], mesh: Mesh | None) -> Callable[P, R]:
    """A jitted function that is traced and run with the mesh and the logical rules at hand."""
    if mesh is None:
        return jitted

    def run(*arguments: P.args, **named: P.kwargs) -> R:
        with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
            return jitted(*arguments, **named)

    return run
