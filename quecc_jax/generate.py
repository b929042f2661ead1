"""Greedy decoding with a key-value cache under fixed shapes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.models.decoder import empty_cache
from quecc_jax.models.vlm import VLM

Generator = Callable[[dict[str, Any], Batch], jax.Array]


def build_generator(
    config: ModelConfig, max_new_tokens: int, eos: int, also: tuple[int, ...] = ()
) -> Generator:
    """A compiled function from parameters and a batch of prompts to answers.

    The prompts of a batch end where their answers begin and may differ in length (padded at the
    end). Decoding stops as soon as every row has ended.

    Args:
      eos: the token that ends an answer.
      also: others that do, such as a template's end mark; they come out as `eos`.

    Returns:
      fn(params, batch) -> int32 [B, max_new_tokens]; `eos` from a row's end on. Rows without any
      token (padding of the batch) are all eos.
    """
    model: Any = VLM(config)

    def generate(params: dict[str, Any], batch: Batch) -> jax.Array:
        variables = {"params": params}
        rows, length = batch.tokens.shape
        cache = empty_cache(config.decoder, rows, length + max_new_tokens, jnp.dtype(config.dtype))
        hidden, cache = model.apply(variables, batch, cache, method=VLM.prefill)
        lengths = jnp.sum(batch.segments > 0, axis=1)
        last = jnp.maximum(lengths - 1, 0)
        hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)

        def choose(hidden: jax.Array, done: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = model.apply(variables, hidden[:, 0], method=VLM.logits)
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            done |= jnp.isin(token, jnp.array((eos, *also)))
            return jnp.where(done, eos, token), done

        token, done = choose(hidden, lengths == 0)
        out = jnp.full((rows, max_new_tokens), eos, jnp.int32).at[:, 0].set(token)

        def unfinished(carry: Any) -> jax.Array:
            step, _, done, _, _ = carry
            return (step < max_new_tokens) & ~jnp.all(done)

        def decode(carry: Any) -> Any:
            step, token, done, out, cache = carry
            positions = (lengths + step - 1)[:, None]
            hidden, cache = model.apply(
                variables, token[:, None], positions, jnp.ones_like(positions), cache, method=VLM.extend
            )
            token, done = choose(hidden, done)
            return step + 1, token, done, out.at[:, step].set(token), cache

        start = (jnp.int32(1), token, done, out, cache)
        return jax.lax.while_loop(unfinished, decode, start)[3]

    return jax.jit(generate)
