"""Settings and cost of average pooling."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, ElasticConfig, Sizes


@dataclasses.dataclass(frozen=True)
class AveragePoolConfig(ElasticConfig):
    """Average pooling: each token is the mean of its square of patches."""

    name: Literal["avgpool"] = "avgpool"

    def cost(self, sizes: Sizes) -> Cost:
        """One addition per value and V."""
        return Cost(0, float(len(self.groups(sizes.grid)) * sizes.patches * sizes.width))
