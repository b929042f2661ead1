"""Settings and cost of MQT."""

import dataclasses
import math
from typing import Literal

from quecc_jax.models.compressors.base_config import NORM, Cost, ElasticConfig, Sizes, attention_products


@dataclasses.dataclass(frozen=True)
class MqtConfig(ElasticConfig):
    """MQT, the Matryoshka query transformer: the first V of many learned queries."""

    name: Literal["mqt"] = "mqt"
    heads: int = 8
    queries: int = 256
    """Learned queries, a square number; the first V of them are used."""
    stored_positions: bool = False
    """Positions are numbers of the checkpoint, as in the original's files, which rounded them to half precision;
    False computes them. No update changes them."""

    shape = "free"
    nested = True

    def num_tokens(self, grid: int) -> int:
        """See `CompressorConfig`."""
        tokens = super().num_tokens(grid)
        most = max((tokens, *self.elastic))
        if most > self.queries or math.isqrt(self.queries) ** 2 != self.queries:
            raise ValueError(f"queries {self.queries} is not a square number of at least the {most} tokens")
        return tokens

    def cost(self, sizes: Sizes) -> Cost:
        """All queries' weights, the attention of V of them, and the norms of N keys and values.

        What keys and queries make is the same for all images of a batch, but counted for each.
        """
        d, n, v = sizes.width, sizes.patches, self.num_tokens(sizes.grid)
        multiplied = attention_products(d, n, v, self.heads)
        return Cost(self.queries * d + 4 * d * d, 2.0 * multiplied + 2 * NORM * n * d)
