"""Settings and cost of TokenPacker."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, ElasticConfig, Sizes


@dataclasses.dataclass(frozen=True)
class TokenPackerConfig(ElasticConfig):
    """TokenPacker: coarse tokens that each take detail from their own region."""

    name: Literal["tokenpacker"] = "tokenpacker"
    heads: int = 8

    def cost(self, sizes: Sizes) -> Cost:
        """Two towers, the queries' matrix and absorbed region attention."""
        d, n, levels, groups = sizes.width, sizes.patches, sizes.levels, self.groups(sizes.grid)
        v, heads = sum(groups), self.heads * len(groups)
        towers = 2 * (levels * d * d + d * d)
        multiplied = n * towers + v * d * d + 4 * v * d * d + 2 * n * heads * d
        first = 2.0 * (2 * n * levels * d * d + v * d * d)
        return Cost(towers + d * d + 4 * d * d, 2.0 * multiplied, first)
