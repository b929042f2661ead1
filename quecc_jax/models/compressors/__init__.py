"""Visual token compressors: (X_s, X_m, query) -> [B, V, D], chosen by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from quecc_jax.config import CompressorConfig
from quecc_jax.models.compressors.none import Uncompressed
from quecc_jax.models.compressors.quecc import QueCC, output_grid


def make_compressor(config: CompressorConfig, dtype: Any = jnp.float32, name: str | None = None) -> nn.Module:
    """The module that a config names.

    Its call takes X_s [B, n, D], X_m [B, n, levels * D] and the query feature [B, 1, H], and
    returns [B, V, D].
    """
    if config.name == "none":
        return Uncompressed(dtype, name=name)
    return QueCC(config.kernel, config.stride, config.heads, dtype, name=name)


def output_tokens(config: CompressorConfig, grid: int) -> int:
    """Tokens V per picture of grid x grid patches; ValueError if the geometry does not fit."""
    return grid**2 if config.name == "none" else output_grid(grid, config.kernel, config.stride) ** 2
