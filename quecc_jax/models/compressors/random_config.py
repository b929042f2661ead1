"""Settings and cost of a random choice of patches."""

import dataclasses
import hashlib
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, FreeConfig, Sizes


@dataclasses.dataclass(frozen=True)
class RandomConfig(FreeConfig):
    """V patches at places that were drawn once, the same for every image: what any choice of patches has to beat."""

    name: Literal["random"] = "random"
    seed: int = 0
    """Which choice."""

    def kept(self, grid: int) -> tuple[int, ...]:
        """The V patches, in raster order. Those of a larger V hold those of a smaller one."""
        # A checksum's order is the same everywhere, whichever version of a library draws.
        drawn = sorted(
            range(grid**2), key=lambda patch: hashlib.sha256(f"{self.seed} {patch}".encode()).digest()
        )
        return tuple(sorted(drawn[: self.num_tokens(grid)]))

    def cost(self, sizes: Sizes) -> Cost:
        """Nothing is computed."""
        del sizes
        return Cost()
