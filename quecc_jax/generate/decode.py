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


class State(NamedTuple):
    """Answers under way."""

    token: jax.Array
    """int32 [B], the newest token of each row; EOS where the row has ended."""
    done: jax.Array
    """bool [B]"""
    step: jax.Array
    """int32 [], tokens chosen so far."""
    lengths: jax.Array
    """int32 [B], tokens of the prompts."""
    seen: jax.Array | None
    """bool [B, vocab], tokens of prompt and answer; None when the choice is greedy."""
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
      sampling: None is greedy.
      keys: typed random keys [B]; needed unless greedy.
      new: positions that the cache has behind the prompts.
    """
    config = model.config
    rows, length = batch.tokens.shape
    cache = empty_cache(config.decoder, rows, length + new, jnp.dtype(config.dtype))
    hidden, cache = _apply(model, params, VLM.prefill, batch, cache, visual)
    lengths = jnp.sum(batch.segments > 0, axis=1)
    last = jnp.maximum(lengths - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    seen = None
    if sampling is not None:
        text = (batch.segments > 0) & (batch.slots < 0)
        row = jnp.arange(rows)[:, None]
        seen = jnp.zeros((rows, config.decoder.vocab_size), bool).at[row, batch.tokens].max(text)
    state = State(jnp.zeros((rows,), jnp.int32), lengths == 0, jnp.int32(0), lengths, seen, cache)
    return _choose(model, ends, params, hidden, state, sampling, keys)


def advance(
    model: VLM,
    ends: tuple[int, ...],
    params: Params,
    state: State,
    sampling: Sampling | None,
    keys: jax.Array | None,
    steps: int,
    limit: jax.Array | int | None = None,
) -> tuple[jax.Array, State]:
    """The next tokens int32 [B, steps], EOS from a row's end on; stops early when every row has ended.

    Args:
      steps: tokens that the program has room for; another number is another program.
      limit: tokens that are decoded, if they are fewer; those behind them are EOS.
      model, ends, params, state, sampling, keys: as for `begin`.
    """
    limit = steps if limit is None else limit
    rows = state.token.shape[0]
    out = jnp.full((rows, steps), ends[0], jnp.int32)

    def unfinished(carry: tuple[jax.Array, jax.Array, State]) -> jax.Array:
        return (carry[0] < limit) & ~jnp.all(carry[2].done)

    def decode(carry: tuple[jax.Array, jax.Array, State]) -> tuple[jax.Array, jax.Array, State]:
        number, out, state = carry
        positions = (state.lengths + state.step - 1)[:, None]
        inputs = state.token[:, None], positions, jnp.ones_like(positions), state.cache
        hidden, cache = _apply(model, params, VLM.extend, *inputs)
        state = _choose(model, ends, params, hidden, state._replace(cache=cache), sampling, keys)
        return number + 1, out.at[:, number].set(state.token), state

    _, out, state = jax.lax.while_loop(unfinished, decode, (jnp.int32(0), out, state))
    return out, state


def _choose(
    model: VLM,
    ends: tuple[int, ...],
    params: Params,
    hidden: jax.Array,
    state: State,
    sampling: Sampling | None,
    keys: jax.Array | None,
) -> State:
    """The state with the token that follows hidden [B, 1, M]."""
    logits = _apply(model, params, VLM.logits, hidden[:, 0])
    seen = state.seen
    if sampling is None or seen is None or keys is None:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
        token = choose(logits, seen, sampling, keys, state.step)
        seen = seen.at[jnp.arange(len(token)), token].set(True)
    done = state.done | jnp.isin(token, jnp.array(ends))
    token = jnp.where(done, ends[0], token)
    return state._replace(token=token, done=done, step=state.step + 1, seen=seen)


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
