"""Settings and cost of LLaVA-Mini's resampler."""

import dataclasses
import math
from typing import Literal

from quecc_jax.models.compressors.base_config import NORM, Cost, FreeConfig, Sizes, attention_products


@dataclasses.dataclass(frozen=True)
class LlavaMiniConfig(FreeConfig):
    """LLaVA-Mini: a resampler to few tokens, and text that has read all patches."""

    name: Literal["llava_mini"] = "llava_mini"
    heads: int = 8
    fusion_layers: int = 4
    """Layers of the pre-fusion (4 originally): decoder layers in which the instruction reads all patches and
    the compressed tokens before the decoder does; 0 leaves it out."""
    published: bool = False
    """As the original's code computes, where the paper leaves it open: the decoder gets the compressed tokens as the
    pre-fusion leaves them, not as the projector made them; tokens of id 0 take no part in the pre-fusion; norms of
    the resampler have an epsilon of 1e-5, not 1e-6; and positions are numbers of the checkpoint."""

    reads_all_patches = True

    @property
    def fuses_tokens(self) -> bool:
        """See `CompressorConfig`."""
        return self.published

    def memory_tokens(self, patches: int) -> int:
        """See `CompressorConfig`."""
        return patches if self.fusion_layers > 0 else 0

    def num_tokens(self, grid: int) -> int:
        """See `CompressorConfig`."""
        if self.fusion_layers < 0:
            raise ValueError(f"fusion_layers {self.fusion_layers} is negative; 0 leaves the pre-fusion out")
        tokens = super().num_tokens(grid)
        if math.isqrt(tokens) ** 2 != tokens:
            raise ValueError(f"tokens {tokens} is not a square number, but llava_mini's queries are a square")
        return tokens

    def cost(self, sizes: Sizes) -> Cost:
        """The resampler's queries and attention."""
        d, n, v = sizes.width, sizes.patches, self.num_tokens(sizes.grid)
        # Norm and positions are added to what few queries multiply.
        multiplied = attention_products(d, n, v, self.heads)
        return Cost(v * d + 4 * d * d, 2.0 * multiplied + (NORM + 1) * n * d)
