"""Small decoders of every kind with random parameters."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.config import DecoderConfig
from quecc_jax.models.decoder import Decoder
from tests.tiny import random_like

S = 6


class Family(NamedTuple):
    """A decoder with random parameters, and its function compiled for rows of S."""

    config: DecoderConfig
    params: dict[str, Any]
    forward: Any
    """(embeddings [2, S, D], positions, segments) -> hidden states."""

    def rows(self, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(2, S, self.config.width)).astype(np.float32)


def everything(model: Decoder, tokens: jax.Array) -> jax.Array:
    positions = jnp.zeros_like(tokens)
    return model.logits(model(model.embed(tokens), positions, positions)[0])


def family(config: DecoderConfig) -> Family:
    model = Decoder(config)
    tokens = jnp.zeros((1, S), jnp.int32)
    boxed = jax.eval_shape(lambda t: model.init(jax.random.key(0), t, method=everything), tokens)
    params = random_like(nn.meta.unbox(boxed)["params"])
    return Family(config, params, jax.jit(lambda *inputs: model.apply({"params": params}, *inputs)[0]))


def close(ours: Any, expected: Any) -> None:
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


PLACES = np.broadcast_to(np.arange(S, dtype=np.int32), (2, S))
ONES = np.ones((2, S), np.int32)
