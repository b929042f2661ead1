"""Pools as sources: all rows are laid out at once, images are memory-mapped."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from quecc_jax.config import ModelConfig
from quecc_jax.data.references import Row, image_refs
from quecc_jax.data.sources.feature_store import Features, read_tower_features
from quecc_jax.data.sources.pool import read_pool
from quecc_jax.data.sources.source import Layout
from quecc_jax.data.text.conversation import Encoded
from quecc_jax.errors import BadRow, UserError


class PoolSource:
    """Rows of a pool, all laid out when it is opened.

    Testbed questions repeat thousands of times over different images, so each different conversation
    is encoded and stored once.
    """

    def __init__(self, directory: str, layout: Layout, model: ModelConfig, fingerprint: str | None):
        pool = read_pool(directory)
        self.name = str(directory)
        refs = [image_refs(row) for row in pool.rows]
        for row, chosen in enumerate(refs):
            if not all(isinstance(ref, int) and 0 <= ref < len(pool.images) for ref in chosen):
                raise UserError(
                    f"{directory}/rows.jsonl, row {row + 1}: image {chosen} is not among the "
                    f"pool's {len(pool.images)}; make the pool anew"
                )
        self._refs = cast(list[list[int]], refs)
        self._encode(pool.rows, layout)
        self._images: _Mapped | Features | None = None
        if not len(pool.images) or not layout.data.images_per_row:
            return
        if layout.data.cached_features:
            self._images = read_tower_features(directory, model, fingerprint)
            return
        size = model.vision.input_size
        if pool.images.shape[1:3] != (size, size):
            raise UserError(
                f"{directory} holds images of {pool.images.shape[1]} pixels but "
                f"vision.input_size is {size}; build the pool at {size}"
            )
        self._images = _Mapped(str(pool.directory / "images.npy"))

    def _encode(self, rows: Sequence[Row], layout: Layout) -> None:
        seen: dict[tuple[str, int], int] = {}
        self._different: list[Encoded | BadRow] = []
        self._which = np.empty(len(rows), np.int32)
        """Of the different conversations, the number of each row's."""
        for number, row in enumerate(rows):
            key = (str(row.get("conversations")), len(self._refs[number]))
            if key not in seen:
                seen[key] = len(self._different)
                try:
                    self._different.append(layout(row))
                except BadRow as error:
                    if layout.data.bad_rows == "error":
                        raise error.at(self.where(number)) from None
                    self._different.append(error.at(self.where(number)))
            self._which[number] = seen[key]

    def __len__(self) -> int:
        return len(self._which)

    def where(self, row: int) -> str:
        return f"{self.name}/rows.jsonl, row {row + 1}"

    def encoded(self, row: int) -> Encoded:
        found = self._different[self._which[row]]
        if isinstance(found, BadRow):
            raise found
        return found

    def write_images(self, row: int, out: np.ndarray) -> None:
        assert self._images is not None
        for slot, ref in enumerate(self._refs[row]):
            out[slot] = self._images[ref]

    def query(self, row: int) -> np.ndarray:
        raise UserError(f"{self.name} has no cached queries; set data.cached_queries = False")


class _Mapped:
    """A memory-mapped array that pickles as its path, so that worker processes map it themselves."""

    def __init__(self, path: str):
        self.path = path
        # A plain view of the map: indexing a memmap object itself is several times slower.
        self.array = np.asarray(np.load(path, mmap_mode="r")).view(np.ndarray)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.array[number]

    def __reduce__(self) -> tuple:
        return _Mapped, (self.path,)
