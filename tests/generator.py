"""Answers of one compiled function: what the engine's chunks and buckets are compared with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.generate.decode import Params, advance, begin, decoding_params, on_mesh
from quecc_jax.generate.sampling import Sampling
from quecc_jax.models.vlm import VLM, Visual


def build_generator(
    config: ModelConfig, max_new_tokens: int, eos: int, also: tuple[int, ...] = (), mesh: Mesh | None = None
) -> Callable[..., jax.Array]:
    """A compiled function from parameters and a batch of prompts to answers.

    The prompts of a batch end where their answers begin and may differ in length (padded at the
    end). Decoding stops as soon as every row has ended.

    Args:
      eos: the token that ends an answer.
      also: others that do, such as a template's end mark; they come out as `eos`.
      mesh: where parameters are sharded by the logical rules, and rows are split; None for one device.

    Returns:
      fn(params, batch, visual=None, sampling=None, keys=None) -> int32 [B, max_new_tokens]; `eos` from a
      row's end on. Rows without any token (padding of the batch) are all eos. See `begin` for the
      arguments; `decoding_params` makes params that need not be rearranged at every call.
    """
    model, ends = VLM(config, unrolled=True), (eos, *also)

    def generate(
        params: Params,
        batch: Batch,
        visual: Visual | None = None,
        sampling: Sampling | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        params = decoding_params(params, config)
        budget = jnp.full(len(batch.tokens), max_new_tokens)
        state = begin(model, ends, params, batch, visual, budget, sampling, keys, max_new_tokens)
        first = state.token[:, None]
        if max_new_tokens == 1:
            return first
        rest, _ = advance(model, ends, params, state, max_new_tokens - 1)
        return jnp.concatenate([first, rest], axis=1)

    return on_mesh(jax.jit(generate), mesh)
