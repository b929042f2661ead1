"""Settings and cost of the convolution alone."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, ElasticConfig, Sizes


@dataclasses.dataclass(frozen=True)
class ConvolutionConfig(ElasticConfig):
    """A depthwise convolution alone: what is left of QueCC without question, towers and attention."""

    name: Literal["conv"] = "conv"

    def cost(self, sizes: Sizes) -> Cost:
        """One k x k window and a bias per token and channel."""
        d, groups, window = sizes.width, self.groups(sizes.grid), self.windows(sizes.grid)[0] ** 2
        # Windows that do not overlap read every patch once.
        read = len(groups) * sizes.patches if self.elastic else window * sum(groups)
        return Cost(window * d, 2.0 * read * d + sum(groups) * d, 2.0 * read * d)
