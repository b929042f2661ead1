"""Rows and questions laid out as the library lays them out, with the arrays of `Batch` of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from quecc_jax.config import DataConfig
from quecc_jax.data.batch import IGNORE
from quecc_jax.data.sources.source import Layout
from quecc_jax.data.text.conversation import Encoded, lay_out
from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.data.text.turns import asking


class LaidOut(Encoded):
    """A conversation in L positions."""

    @property
    def tokens(self) -> np.ndarray:
        """int32 [L], see `Batch`."""
        return np.maximum(self.codes, 0)

    @property
    def slots(self) -> np.ndarray:
        """int32 [L], see `Batch`."""
        return np.where(self.codes < 0, -1 - self.codes, -1).astype(np.int32)

    @property
    def labels(self) -> np.ndarray:
        """int32 [L], see `Batch`."""
        return np.where(self.loss, self.codes, IGNORE).astype(np.int32)


def encode(
    row: Any, tokenizer: Tokenizer, data: DataConfig, visual_tokens: int, prompt: bool = False
) -> LaidOut:
    """A row of a data set, as a source lays it out."""
    return LaidOut(*Layout(tokenizer, data, visual_tokens, 0 if prompt else None)(row))


def prompt(
    question: str,
    images: int,
    tokenizer: Tokenizer,
    data: DataConfig,
    visual_tokens: int,
    history: Sequence[str] = (),
    system: str | None = None,
    latest: bool = False,
) -> LaidOut:
    """A question, as `Engine` lays it out."""
    return LaidOut(
        *lay_out(asking(question, images, history, system, latest), tokenizer, data, visual_tokens)
    )
