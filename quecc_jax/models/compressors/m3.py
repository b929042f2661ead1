"""M3, Matryoshka multimodal models (arXiv 2405.17430): average pooling of the projected patches."""

import flax.linen as nn
from jax.typing import DTypeLike

from quecc_jax.models.compressors.avgpool import AveragePool
from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.m3_config import M3Config


def build(settings: M3Config, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings: `avgpool`'s, which here is given [P, N, M] that the projector made of X_s and
    returns [P, V, M]."""
    return AveragePool(settings.sides(sizes.grid), dtype, name=name)
