"""The Flax module of a compressor's settings."""

import importlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.config.compressors import REGISTRY
from quecc_jax.config.shapes import compressor_sizes


def make_compressor(config: ModelConfig, dtype: Any = jnp.float32, name: str | None = None) -> nn.Module:
    """The module that a config names, without its pre-fusion.

    Its call takes the `Features` of P images and the query feature [P, 1, H], and returns [P, V + R, D]: V
    tokens, and R that a pre-fusion reads, if there is one.
    """
    module = importlib.import_module(REGISTRY[type(config.compressor)])
    made: nn.Module = module.build(config.compressor, compressor_sizes(config), dtype, name)
    return made
