"""Visual token compressors: (features, query, batch) -> [P, V, D], chosen by name.

A compressor is one module of this package and one line of `compressor_config.COMPRESSORS`. The module
defines `build(config, dtype, name)`, the Flax module for a model, and `cost(config)`, its `Cost`.
"""

import importlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from quecc_jax.config import ModelConfig
from quecc_jax.models.compressors.base import Cost


def make_compressor(config: ModelConfig, dtype: Any = jnp.float32, name: str | None = None) -> nn.Module:
    """The module that a config names.

    Its call takes the `Features` of P pictures, the query feature [P, 1, H] and the batch they are from
    (or None), and returns [P, V, D].
    """
    return _module(config).build(config, dtype, name)


def compressor_cost(config: ModelConfig) -> Cost:
    """Weights and FLOPs of the compressor that a config names."""
    return _module(config).cost(config)


def _module(config: ModelConfig) -> Any:
    return importlib.import_module(f"{__name__}.{config.compressor.name}")
