"""Whether a vLLM server goes on from our embeddings as the model would that they are of."""

import base64
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import PyTree

from quecc_jax.convert.io.pickles import pickled
from quecc_jax.errors import UserError
from quecc_jax.generate.decode import Params, on_mesh
from quecc_jax.generate.embeddings import prompt_embeddings
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Question
from quecc_jax.json_text import JsonObject
from quecc_jax.models.vlm import VLM
from quecc_jax.serve.backend import Away
from quecc_jax.serve.vllm.client import TokenLogprobs, Vllm
from quecc_jax.sharding import on_host

PROBE = Question("a")
SHOWN = 5
"""Tokens whose probabilities are compared."""
PROBING: JsonObject = {
    "max_tokens": 1,
    "temperature": 0.0,
    "logprobs": SHOWN,
    "return_tokens_as_token_ids": True,
    "add_special_tokens": False,
    "repetition_penalty": 1.0,
    "ignore_eos": True,
}
CLOSE = 0.5
"""By which ln p of the likeliest token may differ; half precision stays far below."""


def wire(embeddings: np.ndarray, dtype: str) -> str:
    """Embeddings [S, M] as vLLM reads them: torch.save's bytes in base64, in the model's type, which loses nothing."""
    stored = embeddings.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else embeddings
    return base64.b64encode(pickled(stored)).decode()


def check(engine: Engine, vllm: Vllm, model: str) -> None:
    """Compares the first token after a short text.

    What is expected is the engine's own choice where it has the decoder's layers, and not in few bits, else that of
    the server itself after the same text as tokens, which tells another table of embeddings, or another scale of them.

    Raises:
      UserError: the server has another model, or takes no embeddings.
      Away: it cannot be reached.
    """
    prompt = engine.prompt(PROBE)
    (embeddings,) = prompt_embeddings(engine, [prompt])
    told = _likeliest(vllm, model, {"prompt_embeds": wire(embeddings, engine.config.model.dtype)})
    kernel = engine.params["decoder"].get("layers_0", {}).get("q", {}).get("kernel")
    if isinstance(kernel, jax.Array):
        expected = _own(engine, embeddings)
    else:
        expected = _likeliest(vllm, model, {"prompt": prompt.encoded.codes.tolist()})
    best = max(expected, key=lambda token: expected[token])
    if abs(told.get(best, -np.inf) - expected[best]) > CLOSE:
        there = f"{told[best]:.2f}" if best in told else f"none of the {SHOWN} largest"
        raise UserError(
            f"{model} of vLLM at {vllm.url} is not the decoder of these embeddings (after a short text ln p of token "
            f"{best} should be {expected[best]:.2f} and is {there}); serve the decoder of the same export, or name "
            "its adapter"
        )


def _likeliest(vllm: Vllm, model: str, prompt: JsonObject) -> Mapping[int, float]:
    """ln p of the tokens that are likeliest after a prompt."""
    reply = vllm.complete({**PROBING, "model": model, **prompt})
    try:
        (choice,) = reply.choices
        (found,) = (choice.logprobs or TokenLogprobs()).top_logprobs
        likeliest = {int(name.removeprefix("token_id:")): logprob for name, logprob in found.items()}
    except ValueError:
        likeliest = {}
    if not likeliest:
        raise Away(f"{vllm.url} says no probabilities of tokens by their ids; is it another server?")
    return likeliest


def _own(engine: Engine, embeddings: np.ndarray) -> Mapping[int, float]:
    """The same of the engine's own decoder."""
    model = VLM(engine.config.model, unrolled=True)
    row = on_host(on_mesh(_next, engine.mesh)(model, engine.params, embeddings[None]))
    best = int(row.argmax())
    return {best: float(row[best])}


@functools.partial(jax.jit, static_argnums=0)
def _next(model: VLM, params: Params, embeddings: jax.Array) -> jax.Array:
    """ln p [vocabulary] of the token after embeddings [1, S, M]."""
    index = jnp.arange(embeddings.shape[1])[None]

    def last(vlm: VLM) -> jax.Array:
        hidden, _ = vlm.decoder(embeddings, index, jnp.ones_like(index), rope_length=1)
        return jax.nn.log_softmax(vlm.logits(hidden[0, -1]))

    logprobs: PyTree = model.apply({"params": params}, method=last)
    return logprobs
