"""PruMerge+: half of the kept patches are those at equal distances, whatever CLS attends to."""

import flax.linen as nn
from jax.typing import DTypeLike

from quecc_jax.models.compressors.base_config import Sizes
from quecc_jax.models.compressors.prumerge import PruMerge
from quecc_jax.models.compressors.prumerge_plus_config import PruMergePlusConfig


def build(settings: PruMergePlusConfig, sizes: Sizes, dtype: DTypeLike, name: str | None) -> nn.Module:
    """The module of these settings."""
    v = settings.num_tokens(sizes.grid)
    return PruMerge(v, (v - 1) // 2, dtype, name=name)
