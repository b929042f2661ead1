"""The Flax module of a compressor's settings."""

import importlib

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from quecc_jax.config import ModelConfig
from quecc_jax.config.compressors import REGISTRY
from quecc_jax.config.shapes import compressor_sizes


def make_compressor(
    config: ModelConfig, dtype: DTypeLike = jnp.float32, name: str | None = None
) -> nn.Module:
    """The module that a config names, without its pre-fusion.

    Its call takes the `Features` of P images and the query feature [P, 1, text_width], and returns [P, V + R, D]: V
    tokens, and R that a pre-fusion reads, if there is one.
    """
    module = importlib.import_module(REGISTRY[type(config.compressor)])
    made: nn.Module = module.build(config.compressor, compressor_sizes(config), dtype, name)
    return made
