"""Which visual token compressors there are, and the settings of one."""

import dataclasses
from typing import TYPE_CHECKING, Literal, NamedTuple


class Kind(NamedTuple):
    """What must be known of a compressor before any module is made."""

    reads_question: bool = False
    """Tokens depend on the question's feature, which takes a pass of its own."""
    shape: Literal["grid", "free", "all"] = "grid"
    """How V is found: `grid` tokens stand on an output grid that `kernel` and `stride` give; `free` ones
    need none and may be any number `tokens`; `all` patches are passed on."""
    elastic: bool = False
    """The same weights can make different V; see `CompressorConfig.elastic`."""
    nested: bool = False
    """Where they do, V tokens are the first V of more; otherwise each V has tokens of its own."""
    projected: bool = False
    """It acts on what the projector made of all patches, in place of the projector on what it made."""
    memory: Literal["none", "patches", "regions"] = "none"
    """What the instruction reads of the picture before the decoder does: all patches, or a few `memory`
    tokens. The module's call then gives them behind its tokens, and it has a method `fuse`."""
    reads_attention: bool = False
    """It reads CLS' attention and the keys of a tower layer, which the tower keeps beside its states then."""


COMPRESSORS: dict[str, Kind] = {
    "quecc": Kind(reads_question=True, elastic=True),
    "quecc_plus": Kind(reads_question=True, memory="regions"),
    "tokenpacker": Kind(elastic=True),
    "m3": Kind(elastic=True, projected=True),
    "mqt": Kind(shape="free", elastic=True, nested=True),
    "avgpool": Kind(elastic=True),
    "conv": Kind(elastic=True),
    "resampler": Kind(shape="free"),
    "prumerge": Kind(shape="free", reads_attention=True),
    "prumerge_plus": Kind(shape="free", reads_attention=True),
    "llava_mini": Kind(shape="free", memory="patches"),
    "none": Kind(shape="all"),
}
"""Each name is a module of `models.compressors`, which says what it must define."""

if TYPE_CHECKING:
    CompressorName = str
else:
    CompressorName = Literal[tuple(COMPRESSORS)]


@dataclasses.dataclass(frozen=True)
class CompressorConfig:
    """Visual token compressor between tower and projector. Those on a grid make the same V of the same
    `kernel` and `stride`, so that one is exchanged for another by its name alone."""

    name: CompressorName = "quecc"
    """`none` passes all features of the select layer on, as LLaVA-1.5 does; it reads nothing below."""
    kernel: int = 24
    """Side of QueCC's and conv's depthwise convolution, in patches."""
    stride: int = 24
    """Patches between output tokens, along one side: V = ((grid - kernel) // stride + 1)^2."""
    tokens: int = 0
    """V of compressors that need no grid (mqt, prumerge, resampler, llava_mini); 0 takes that of `kernel`
    and `stride`, as the others do."""
    elastic: tuple[int, ...] = ()
    """Values V, ascending, that one set of weights is trained for: each batch draws one of them, and the
    model serves any. `kernel` and `stride` are not read then. With `tokens` set to one of them, that V alone
    is computed, of the same weights; a trained model serves its largest unless told otherwise."""
    heads: int = 8
    queries: int = 256
    """How many queries mqt learns, a square number; the first V of them are used."""
    query: Literal["question", "zero"] = "question"
    """What is injected into the features: the question's feature, or zeros (the ablation)."""
    fusion_layers: int = 4
    """The pre-fusion of llava_mini (4 layers originally) and quecc_plus (1 is meant): decoder layers in
    which the instruction reads patches or `memory` and the compressed tokens before the decoder does; 0
    leaves it out."""
    memory: int = 4
    """quecc_plus: region tokens R that the instruction reads, a square number that tiles the grid."""
    registers: bool = False
    """quecc_plus: attention by learned queries, whatever is asked, beside the question's."""
    rounds: int = 1
    """quecc_plus: attention in so many rounds, each of which knows what those before have found."""

    @property
    def kind(self) -> Kind:
        """What its name says."""
        return COMPRESSORS[self.name]

    @property
    def reads_question(self) -> bool:
        """Whether visual tokens depend on the question, which then needs a pass of its own."""
        return self.kind.reads_question and self.query == "question"

    @property
    def fuses(self) -> bool:
        """Whether the instruction's embeddings are rewritten before the decoder reads them."""
        return self.kind.memory != "none" and self.fusion_layers > 0
