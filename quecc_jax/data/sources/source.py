"""What the pipeline asks of a data set: numbered rows, each laid out as token ids and slots, and its images."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.references import ImageRef, Row, image_refs
from quecc_jax.data.sources.feature_store import Features
from quecc_jax.data.sources.json_rows import RowFile
from quecc_jax.data.sources.mixture import Mixture
from quecc_jax.data.sources.parquet import ParquetRows
from quecc_jax.data.text.conversation import Encoded, lay_out
from quecc_jax.data.text.tokenizer import Tokenizer
from quecc_jax.data.text.turns import read_row
from quecc_jax.data.tiles import Arrangement, arrange
from quecc_jax.errors import BadRow

Placed = RowFile | Mixture | ParquetRows
"""Rows that know where each of them stands."""


class Source(Protocol):
    """A data set for the pipeline."""

    def __len__(self) -> int: ...

    def where(self, row: int) -> str:
        """Where the row stands, for messages: its file and its line or number."""

    def encoded(self, row: int) -> Encoded:
        """The row laid out, for which no more than the size of its images is read. Raises BadRow."""

    def write_images(self, row: int, out: np.ndarray) -> None:
        """Writes the images into the first slots of zeros: pixels uint8 [I, height, width, 3], or the stored
        tower states float16 [I, N, K, D] with data.cached_features. Raises BadRow, maybe after the first."""

    def query(self, row: int) -> np.ndarray:
        """The cached query feature, float16 [query_width], of a row that `encoded` takes."""


class Arrange(NamedTuple):
    """Gives the slots of an any-resolution image, of which it reads the size alone."""

    size: Callable[[ImageRef], tuple[int, int]]
    model: ModelConfig

    def __call__(self, ref: ImageRef) -> Arrangement:
        return arrange(*self.size(ref), self.model)


class Layout(NamedTuple):
    """How the rows of a source are laid out."""

    tokenizer: Tokenizer
    data: DataConfig
    visual_tokens: int
    asked: int | None = None
    """Stop where the answer to this human turn begins, from 0, for generation; the last one where there are fewer."""
    latest: bool = False
    """The query of every image is that turn, not the one that holds it."""
    text: DataConfig | None = None
    """Settings for rows without images, if they differ from `data`."""
    arrange: Arrange | None = None
    """The slots of an image by its reference; None where each has V."""

    def __call__(self, row: Row) -> Encoded:
        """Lays out a row.

        Raises:
          BadRow: as `read_row` and `lay_out`; or it ends without an answer, and is not for generation. The
            caller adds where the row stands.
        """
        said = read_row(row)
        if self.asked is None and len(said.turns) % 2:
            raise BadRow("turns", "its last turn has no answer; add one or drop the turn")
        data = self.data if said.images or self.text is None else self.text
        arranged = [self.arrange(ref) for ref in image_refs(row)] if self.arrange else []
        return lay_out(said, self.tokenizer, data, self.visual_tokens, arranged, self.asked, self.latest)


class RowSource:
    """Rows that are encoded when asked for, with images that are read when asked for."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        image: Callable[[ImageRef], np.ndarray],
        layout: Layout,
        queries: Features | None = None,
    ):
        """
        Args:
          name: for messages.
          rows: in LLaVA's form; parsed one by one.
          image: reads an image, or its stored tower states; raises BadRow.
          layout: of the rows.
          queries: stored query features, by row.
        """
        self.name, self.rows, self.layout = name, rows, layout
        self._image, self._queries = image, queries
        self._last: tuple[int, Row] = (-1, {})

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        if isinstance(self.rows, Placed):
            return self.rows.where(row)
        return f"{self.name}, row {row + 1}"

    def row(self, number: int) -> Row:
        """A row as it was given, or BadRow; the last one is kept, since its parts are asked for one by one."""
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

    def query(self, row: int) -> np.ndarray:
        assert self._queries is not None
        return self._queries[row]

    def write_images(self, row: int, out: np.ndarray) -> None:
        start = 0
        for ref in image_refs(self.row(row)):
            try:
                read = self._image(ref).reshape(-1, *out.shape[1:])
            except BadRow as error:
                raise error.at(self.where(row)) from None
            out[start : start + len(read)] = read
            start += len(read)
