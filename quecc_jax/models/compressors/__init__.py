"""Visual token compressors: (X_s, X_m, query) -> [B, V, D], chosen by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from quecc_jax.config import CompressorConfig
from quecc_jax.models.compressors.none import Uncompressed
from quecc_jax.models.compressors.quecc import QueCC


def make_compressor(config: CompressorConfig, dtype: Any = jnp.float32, name: str | None = None) -> nn.Module:
    """The module that a config names.

    Its call takes X_s [B, n, D], X_m [B, n, levels * D] and the query feature [B, 1, H], and
    returns [B, V, D].
    """
    if config.name == "none":
        return Uncompressed(dtype, name=name)
    return QueCC(config.kernel, config.stride, config.heads, dtype, name=name)
