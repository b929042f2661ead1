"""Settings and cost of QueCC."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, ElasticConfig, Sizes


@dataclasses.dataclass(frozen=True)
class QueccConfig(ElasticConfig):
    """QueCC: a depthwise convolution of features that know the question, and attention to its regions."""

    name: Literal["quecc"] = "quecc"
    heads: int = 8
    query: Literal["question", "zero"] = "question"
    """What is injected into the features: the question's feature, or zeros (the ablation)."""

    @property
    def reads_question(self) -> bool:
        """See `CompressorConfig`."""
        return self.query == "question"

    def cost(self, sizes: Sizes) -> Cost:
        """Towers, convolution, absorbed region attention and the question's projection. Resizing an elastic
        compressor's kernel is not counted: it is done once, not per image."""
        groups, (kernel, _, windows) = self.groups(sizes.grid), self.windows(sizes.grid)
        scales = len(groups)
        window = scales * sizes.patches if windows else sum(groups) * kernel**2
        return quecc_cost(sizes, self.heads, kernel, window, sum(groups), scales)


def quecc_cost(sizes: Sizes, heads: int, kernel: int, window: int, tokens: int, scales: int = 1) -> Cost:
    """Cost of QueCC's towers, convolution and attention.

    Args:
      sizes: the model's.
      heads: H of the attention.
      kernel: side of the convolution's kernel.
      window: multiply-adds of the convolution per channel.
      tokens: of all V together.
      scales: number of V that are made.
    """
    d, n, levels, text = sizes.width, sizes.patches, sizes.levels, sizes.query_width
    towers = 2 * (levels * d * d + d * d) + 2 * d * d
    params = towers + 4 * d * d + kernel**2 * d + text * d
    multiplied = n * towers + window * d + 4 * tokens * d * d + scales * 2 * n * heads * d + text * d
    return Cost(params, 2.0 * multiplied, 2.0 * 2 * n * levels * d * d)
