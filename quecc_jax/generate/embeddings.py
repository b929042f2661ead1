"""Prompt embeddings: what the decoder's layers would read of questions, for an engine elsewhere that holds them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from quecc_jax.config import ModelConfig
from quecc_jax.data.batch import Batch
from quecc_jax.generate.decode import Params, on_mesh
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Prompt
from quecc_jax.models.lora import NAME as LORA
from quecc_jax.models.vlm import VLM, Visual
from quecc_jax.sharding import on_host


def prompt_embeddings(
    engine: Engine, prompts: Sequence[Prompt], new: int = 1, rows: int = 0
) -> list[np.ndarray]:
    """What enters the decoder's layers of some prompts, all in one batch.

    Text tokens' embeddings, those of instructions after the pre-fusion if there is one, with visual tokens in their
    slots. What repeats among images and questions is computed once, as for the engine's own answers.

    Args:
      engine: of the model; it may lack the decoder's layers where the compressor reads no question by them, see
        `encoder_part`.
      prompts: all with pixels, or all with stored states.
      new: tokens of an answer at most; only decoders of kind `longrope` look at it.
      rows: of the batch, at least; where batches follow each other, equal numbers share a program.

    Returns:
      float32 [S, M] of each prompt, S its own number of tokens.

    Raises:
      UserError: as `Engine.batch`.
    """
    lengths = [len(prompt.encoded.codes) for prompt in prompts]
    length, _ = engine.room(max(lengths), new)
    batch, visual = engine.encoded(engine.batch(prompts, length, rows))
    model = VLM(engine.config.model, unrolled=True)
    made = on_host(on_mesh(_splice, engine.mesh)(model, engine.params, batch, visual))
    return [row[:length] for row, length in zip(made, lengths, strict=False)]


@functools.partial(jax.jit, static_argnums=0)
def _splice(model: VLM, params: Params, batch: Batch, visual: Visual | None) -> jax.Array:
    spliced: Any = model.apply({"params": params}, batch, visual, method=VLM.splice)
    return spliced.astype(jnp.float32)


def needs_layers(config: ModelConfig) -> bool:
    """Whether visual tokens depend on what the decoder's layers make of the question."""
    return config.compressor.reads_question and config.query.encoder in ("decoder", "early_exit")


def takes_part(config: ModelConfig, path: tuple[str, ...]) -> bool:
    """Whether prompt embeddings are made with a parameter: with all but the decoder's layers, the norm behind them
    and their adapters, and with these too where `needs_layers`."""
    if needs_layers(config) or path[0] not in ("decoder", LORA):
        return True
    return path[0] == "decoder" and path[1] in ("embedding", "head")


def encoder_part(config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some parameters, or stand-ins of them, that `takes_part`."""
    leaves = flatten_dict(params)
    part: dict[str, Any] = unflatten_dict({p: leaf for p, leaf in leaves.items() if takes_part(config, p)})
    return part
