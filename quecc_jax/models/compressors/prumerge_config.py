"""Settings and cost of PruMerge and PruMerge+."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, FreeConfig, Sizes

NEIGHBOURS = 32
"""Tokens that a kept one is merged with, at most."""


@dataclasses.dataclass(frozen=True)
class PruMergeConfig(FreeConfig):
    """PruMerge: patches that CLS attends to, merged with their like. Training-free."""

    name: Literal["prumerge"] = "prumerge"
    reads_attention = True

    def cost(self, sizes: Sizes) -> Cost:
        """See `prumerge_cost`."""
        return prumerge_cost(sizes, self.num_tokens(sizes.grid))


def prumerge_cost(sizes: Sizes, tokens: int) -> Cost:
    """Similarities of kept and all patches, their selection, and V weighted sums. There are no weights."""
    d, n, v = sizes.width, sizes.patches, tokens
    selected = (v - 1) * (2 * n * d + 2 * min(NEIGHBOURS, n - 1) * n) + 3 * n * d * (v > 1)
    return Cost(0, float(selected + 2 * v * n * d))
