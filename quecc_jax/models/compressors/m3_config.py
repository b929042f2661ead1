"""Settings and cost of M3."""

import dataclasses
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, ElasticConfig, Sizes


@dataclasses.dataclass(frozen=True)
class M3Config(ElasticConfig):
    """M3: average pooling of the projected patches."""

    name: Literal["m3"] = "m3"
    projected = True

    def cost(self, sizes: Sizes) -> Cost:
        """One addition per projected value and V; the projector, which acts on all N patches, is counted by
        itself."""
        return Cost(0, float(len(self.groups(sizes.grid)) * sizes.patches * sizes.decoder_width))
