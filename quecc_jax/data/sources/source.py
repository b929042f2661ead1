"""What the pipeline needs of a data set: numbered rows, each as token ids with slots, its questions and its images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.images import ImageReader
from quecc_jax.data.references import Row, image_refs
from quecc_jax.data.sources.feature_store import Features
from quecc_jax.data.sources.json_rows import RowFile
from quecc_jax.data.sources.mixture import Mixture
from quecc_jax.data.text.conversation import Encoded, encode
from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.data.tiles import Arrangement, arrange
from quecc_jax.errors import BadRow


class Source(Protocol):
    """What the pipeline needs of a data set; images are written into zeroed arrays.

    Where images cannot be read, the writing methods raise BadRow, maybe after the first of several.
    """

    def __len__(self) -> int: ...

    def where(self, row: int) -> str:
        """The place of a row, for messages."""

    def encoded(self, row: int) -> Encoded:
        """The row without its images, of which the size at most is read. Raises BadRow."""

    def write_pixels(self, row: int, out: np.ndarray) -> None:
        """Writes the images into the first slots of uint8 [I, H, W, 3]."""

    def write_features(self, row: int, out: np.ndarray) -> None:
        """Writes cached tower states into the first slots of float16 [I, n, K, D]."""

    def query(self, row: int) -> np.ndarray:
        """The cached query feature, float16 [H]; asked of rows that `encoded` takes."""


class Arrange(NamedTuple):
    """What stands for an any-resolution image, which is asked for its size alone."""

    size: Callable[[Any], tuple[int, int]]
    model: ModelConfig

    def __call__(self, ref: Any) -> Arrangement:
        return arrange(*self.size(ref), self.model)


class Layout(NamedTuple):
    """How rows are laid out: everything that `encode` needs beside the row."""

    tokenizer: Tokenizer
    data: DataConfig
    visual_tokens: int
    prompts: bool
    """Stop where the first answer begins, for generation."""
    text: DataConfig | None = None
    """What holds for a row without images in place of `data`, if anything does."""
    arrange: Arrange | None = None
    """What stands for an image, by its reference; None for its V tokens."""

    def __call__(self, row: Row) -> Encoded:
        """Encodes a row, or raises BadRow; the caller adds where it stands."""
        # What is no row at all has no images either; `encode` says so.
        refs = image_refs(row) if isinstance(row, dict) else []
        data = self.data if refs or self.text is None else self.text
        arranged = [self.arrange(ref) for ref in refs] if self.arrange else []
        return encode(row, self.tokenizer, data, self.visual_tokens, self.prompts, arranged)


class RowSource:
    """Rows that are encoded when asked for, with images that are read when asked for."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        images: ImageReader,
        layout: Layout,
        features: Features | None = None,
        queries: Features | None = None,
    ):
        """
        Args:
          name: for messages.
          rows: in LLaVA's form; parsed one by one.
          images: of the rows.
          layout: of the rows.
          features: stored tower states, where rows name images by number.
          queries: stored query features, by row.
        """
        self.name, self.rows, self.layout = name, rows, layout
        self._images, self._features, self._queries = images, features, queries
        self._last: tuple[int, Row] = (-1, {})

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        if isinstance(self.rows, RowFile | Mixture):
            return self.rows.where(row)
        return f"{self.name}, row {row + 1}"

    def row(self, number: int) -> Row:
        """A row as it was given, or BadRow; the last one is kept, as its parts are asked for one by one."""
        last, found = self._last
        if last != number:
            try:
                found = self.rows[number]
            except BadRow as error:
                raise error.at(self.where(number)) from None
            self._last = (number, found)
        return found

    def encoded(self, row: int) -> Encoded:
        found = self.row(row)
        try:
            return self.layout(found)
        except BadRow as error:
            raise error.at(self.where(row)) from None

    def write_pixels(self, row: int, out: np.ndarray) -> None:
        self._write(row, self._images, out)

    def query(self, row: int) -> np.ndarray:
        assert self._queries is not None
        return self._queries[row]

    def write_features(self, row: int, out: np.ndarray) -> None:
        assert self._features is not None
        self._write(row, self._features.__getitem__, out)

    def _write(self, row: int, read: Callable[[Any], np.ndarray], out: np.ndarray) -> None:
        start = 0
        for ref in image_refs(self.row(row)):
            try:
                seen = read(ref).reshape(-1, *out.shape[1:])
            except BadRow as error:
                raise error.at(self.where(row)) from None
            out[start : start + len(seen)] = seen
            start += len(seen)
