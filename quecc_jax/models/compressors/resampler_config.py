"""Settings and cost of the resampler."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import NORM, Cost, FreeConfig, Sizes, attention_products

BLOCKS = 2
WIDENING = 4
"""Width of the MLP's hidden layer in multiples of D."""


@dataclasses.dataclass(frozen=True)
class ResamplerConfig(FreeConfig):
    """A learned-query resampler, as in Flamingo and BLIP-2."""

    name: Literal["resampler"] = "resampler"
    heads: int = 8

    def cost(self, sizes: Sizes) -> Cost:
        """The queries, and attention, MLP and the patches' norm of each block."""
        d, n, v = sizes.width, sizes.patches, self.num_tokens(sizes.grid)
        block = 4 * d * d + 2 * WIDENING * d * d
        multiplied = 2 * WIDENING * v * d * d + attention_products(d, n, v, self.heads)
        # Norms and positions are added to what few queries multiply.
        return Cost(v * d + BLOCKS * block, BLOCKS * (2.0 * multiplied + (NORM + 1) * n * d))
