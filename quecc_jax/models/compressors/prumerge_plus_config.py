"""Settings and cost of PruMerge+."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, FreeConfig, Sizes
from quecc_jax.models.compressors.prumerge_config import prumerge_cost


@dataclasses.dataclass(frozen=True)
class PruMergePlusConfig(FreeConfig):
    """PruMerge+: half of the kept patches are those at equal distances, whatever CLS attends to."""

    name: Literal["prumerge_plus"] = "prumerge_plus"
    reads_attention = True

    def cost(self, sizes: Sizes) -> Cost:
        """That of PruMerge."""
        return prumerge_cost(sizes, self.num_tokens(sizes.grid))
