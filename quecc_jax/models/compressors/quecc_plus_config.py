"""Settings and cost of QueCC-plus."""

import dataclasses
import math
from typing import Literal

from quecc_jax.models.compressors.base_config import Cost, GridConfig, Sizes
from quecc_jax.models.compressors.quecc_config import quecc_cost


@dataclasses.dataclass(frozen=True)
class QueccPlusConfig(GridConfig):
    """QueCC with an instruction that has read a few region tokens of the image."""

    name: Literal["quecc_plus"] = "quecc_plus"
    heads: int = 8
    query: Literal["question", "zero"] = "question"
    """What is injected into the features: the question's feature, or zeros (the ablation)."""
    fusion_layers: int = 4
    """Layers of the pre-fusion (1 is meant): decoder layers in which the instruction reads `memory` and the
    compressed tokens before the decoder does; 0 leaves it out."""
    memory: int = 4
    """Region tokens R that the instruction reads, a square number that tiles the grid."""
    registers: bool = False
    """Attention by learned queries, whatever is asked, beside the question's."""
    rounds: int = 1
    """Attention in so many rounds, each of which knows what those before have found."""

    @property
    def reads_question(self) -> bool:
        """See `CompressorConfig`."""
        return self.query == "question"

    def memory_tokens(self, patches: int) -> int:
        """See `CompressorConfig`."""
        del patches
        return self.memory if self.fusion_layers > 0 else 0

    def num_tokens(self, grid: int) -> int:
        """See `CompressorConfig`."""
        if self.fusion_layers < 0:
            raise ValueError(f"fusion_layers {self.fusion_layers} is negative; 0 leaves the pre-fusion out")
        side = math.isqrt(max(self.memory, 0))
        if self.fusion_layers and (not side or side**2 != self.memory or grid % side):
            raise ValueError(f"memory {self.memory} is not the square of a divisor of the grid's {grid}")
        return super().num_tokens(grid)

    def cost(self, sizes: Sizes) -> Cost:
        """QueCC's, and what registers, further rounds and the memory add."""
        d, n, v = sizes.width, sizes.patches, self.num_tokens(sizes.grid)
        base = quecc_cost(sizes, self.heads, self.kernel, v * self.kernel**2, v)

        def attention(queries: int) -> int:
            return 4 * queries * d * d + 2 * n * self.heads * d

        more = self.rounds - 1 + self.registers
        params = base.params + more * 4 * d * d + self.registers * d
        multiplied = more * attention(v)
        if self.fusion_layers > 0:
            params += n // self.memory * d + 4 * d * d
            multiplied += n * d + attention(self.memory)
        return Cost(params, base.flops + 2.0 * multiplied, base.first)
