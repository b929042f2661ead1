"""Which encoders turn a question into the feature that conditions the compressor, and their settings."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class QueryConfig:
    """The question's encoder; compressors that read no question ignore it. No gradient passes through it."""

    encoder: Literal["decoder", "early_exit", "embeddings"] = "decoder"
    """`decoder` is the paper's: the language model's final hidden state at the question's last token.
    `early_exit` runs the first `layer` of its layers alone, then the final norm. `embeddings` is the
    mean of the question's token embeddings, BOS among them, and runs none."""
    layer: int = 0
    """`early_exit`: decoder layers that run, from 1 to all of them, which is `decoder`."""
