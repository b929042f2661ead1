"""M3, Matryoshka multimodal models (arXiv 2405.17430): average pooling of the projected patches."""

from typing import Any

import flax.linen as nn

from quecc_jax.config import ModelConfig
from quecc_jax.config.shapes import output_sides
from quecc_jax.models.compressors.avgpool import AveragePool
from quecc_jax.models.compressors.base import Cost


def build(config: ModelConfig, dtype: Any, name: str | None) -> nn.Module:
    """The module for a model: `avgpool`'s, which here is given [P, n, M] that the projector made of X_s and
    returns [P, V, M]."""
    return AveragePool(output_sides(config), dtype, name=name)


def cost(config: ModelConfig) -> Cost:
    """One addition per projected value and V; the projector, which acts on all n patches, is counted by
    itself."""
    return Cost(0, float(len(config.output_token_groups) * config.vision.patches * config.decoder.width))
