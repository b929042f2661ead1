"""Settings of no compression."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import CompressorConfig, Cost, Sizes


@dataclasses.dataclass(frozen=True)
class NoneConfig(CompressorConfig):
    """No compression: all features of the select layer, LLaVA-1.5's visual tokens."""

    name: Literal["none"] = "none"
    shape = "all"

    def num_tokens(self, grid: int) -> int:
        """See `CompressorConfig`."""
        return grid**2

    def cost(self, sizes: Sizes) -> Cost:
        """Nothing: the projector, which acts on the tower's states then, is counted by itself."""
        del sizes
        return Cost()
