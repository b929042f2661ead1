"""PruMerge+: half of the kept patches are those at equal distances, whatever CLS attends to."""

from typing import Any

import flax.linen as nn

from quecc_jax.config import ModelConfig
from quecc_jax.models.compressors.prumerge import PruMerge
from quecc_jax.models.compressors.prumerge import cost as cost


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model."""
    v = config.num_output_tokens
    return PruMerge(v, (v - 1) // 2, dtype, name=name)
