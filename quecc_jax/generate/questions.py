"""What an engine is asked, how its answers are chosen, and what they took."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from quecc_jax.data.text.conversation import Encoded
from quecc_jax.data.text.templates import PLACEHOLDER
from quecc_jax.data.text.turns import asking
from quecc_jax.data.tiles import Arrangement
from quecc_jax.errors import UserError
from quecc_jax.generate.sampling import Sampling

Query = Literal["own", "latest"]
"""Whose words condition the compressor: those of the turn that holds the image, as in training and in the
original, or the latest turn's, for which the images are compressed anew at every turn."""


class ReadImage(NamedTuple):
    """An image as the tower takes it."""

    pixels: np.ndarray
    """uint8 [P, H, W, 3]: the whole in the tower's square, and behind it the tiles where it has any"""
    key: bytes
    """Equal keys mean equal pixels."""
    arranged: Arrangement | None = None
    """What stands for an any-resolution image in the text."""


AskedImage = ReadImage | Image.Image | BytesIO | bytes | str | Path
"""An image that `Engine.image` has read, or what it is read from: a path, an open file, encoded bytes. Those
that are not read yet are read when their batch is made, and not kept."""


class Question(NamedTuple):
    """What is asked, about which images, after which conversation."""

    text: str
    images: tuple[AskedImage, ...] = ()
    history: tuple[str, ...] = ()
    """What human and assistant said before, in turn, the human first."""
    query: Query = "own"
    """Whose words condition the compressor."""
    name: str = ""
    """How messages call it; by its text if empty."""

    def asked(self) -> str:
        """The turn whose words condition the compression of the last image, without placeholders."""
        said = asking(self.text, len(self.images), self.history)
        turn = self.text if self.query == "latest" else (said.asked or said.turns[:1])[-1]
        return turn.replace(PLACEHOLDER, "").strip()

    def where(self) -> str:
        """How messages begin."""
        return f"question {self.name or repr(self.text)}"


class Prompt(NamedTuple):
    """A question laid out: what the decoder reads, and how its images come into a batch."""

    encoded: Encoded
    write: Callable[[np.ndarray], None]
    """Writes its images into the front of zeros [I, ...]: pixels uint8 [I, H, W, 3], or states. Raises
    BadRow where one cannot be read."""
    stored: bool = False
    """It writes stored tower states float16 [I, n, K, D] instead of pixels."""
    unknown_words: tuple[str, ...] = ()
    """Of what is asked now, see `Tokenizer.unknown_words`."""


class Prompts:
    """Prompts as a source of data, so that their batches are made as those of training are."""

    def __init__(self, prompts: Sequence[Prompt]):
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def where(self, row: int) -> str:
        return f"question {row + 1}"

    def encoded(self, row: int) -> Encoded:
        return self.prompts[row].encoded

    def write_images(self, row: int, out: np.ndarray) -> None:
        self.prompts[row].write(out)

    def query(self, row: int) -> np.ndarray:
        raise UserError("a question has no stored query; set data.cached_queries = False")


class Limits(NamedTuple):
    """How an answer is chosen, and where it ends."""

    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    """Texts that end an answer, beside the template's own end; none of them is part of it."""
    sampling: Sampling | None = None
    """None is greedy."""
    seed: int = 0
    """Row r of a call draws with the key jax.random.fold_in(key(seed), r)."""


class Usage(NamedTuple):
    """What one answer took."""

    prompt_tokens: int
    """Visual tokens included."""
    visual_tokens: int
    """Newlines of any-resolution images included."""
    cut_question_tokens: int
    """Of the question for the compressor, that data.query_length left out."""
    new_tokens: int
    """Tokens of the answer, its end left out."""
    first_token_seconds: float
    """From the question to its first token, encoding of the images included."""
    seconds: float
    """From the question to the end of its answer."""
    ended_by: str
    """`end` (a token), `stop` (a text) or `length`."""

    unknown_words: tuple[str, ...] = ()
    """Of the question, that the tokenizer does not know and which are all one to the model."""

    def told(self) -> str:
        """What to say of words of the question that the model did not read; "" where it read all."""
        lost, words = self.cut_question_tokens, " ".join(map(repr, self.unknown_words))
        said = (
            f"data.query_length cut {lost} tokens of the question for the compressor" if lost else "",
            f"the model's tokenizer does not know {words}; it reads the same token for any such word"
            if words
            else "",
        )
        return "; ".join(filter(None, said))
