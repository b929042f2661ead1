"""Which encoders turn a question into the feature that conditions the compressor, and their settings."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """CLIP's text transformer. The defaults are those beside CLIP-L/14, at 224 and at 336 pixels."""

    vocab_size: int = 49408
    positions: int = 77
    """Tokens of a question at most, start and end included."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    projection: int = 768
    """Width of the space that texts and images share; 0 stops before the projection into it."""


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """The question's encoder; compressors that read no question ignore it. No gradient passes through it."""

    encoder: Literal["decoder", "early_exit", "embeddings", "clip_text"] = "decoder"
    """`decoder` is the paper's: the language model's final hidden state at the question's last token.
    `early_exit` runs the first `layer` of its layers alone, then the final norm. `embeddings` is the
    mean of the question's token embeddings, BOS among them, and runs none. `clip_text` is CLIP's text
    tower, always frozen, which reads the question in its own vocabulary (data.query_tokenizer)."""
    layer: int = 0
    """`early_exit`: decoder layers that run, from 1 to all of them, which is `decoder`."""
    text: ClipTextConfig = ClipTextConfig()
    """The tower of `clip_text`."""

    @property
    def reads_decoder(self) -> bool:
        """Whether the encoder is a part of the decoder, and so is trained where that is."""
        return self.encoder != "clip_text"
