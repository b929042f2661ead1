"""Settings of low-rank adapters (LoRA, arXiv 2106.09685) of the decoder's matrices."""

import dataclasses
import math
from fnmatch import fnmatchcase


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapters: to a matrix W, which stays as it is, they add scale A B, of which A and B are trained.

    LLaVA's recipe is rank 128, alpha 256 and dropout 0.05 with a learning rate of 2e-4, for compressor and
    projector 2e-5 (`optimizer.projector_learning_rate`); QLoRA's is rank 64 and alpha 16.
    """

    rank: int = 0
    """Columns of A and rows of B; 0 is no adapter, and then the other settings mean nothing."""
    alpha: float = 16.0
    """Of `scale`."""
    dropout: float = 0.0
    """Share of the inputs of A that a training step zeroes, others for every matrix."""
    targets: tuple[str, ...] = ("*",)
    """Which matrices of the decoder's layers have one: names among q, k, v, out, gate, up and down, or
    patterns of them with * and ?."""
    rank_stabilised: bool = False
    """`scale` is alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732) instead of alpha / rank."""

    @property
    def scale(self) -> float:
        """Factor on the product of A and B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def adapts(self, name: str | None) -> bool:
        """Whether the matrix of this name has an adapter."""
        return self.rank > 0 and any(fnmatchcase(name or "", pattern) for pattern in self.targets)
