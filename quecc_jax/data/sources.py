"""Sources: numbered rows, each as token ids with slots, its query, and its pictures."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig, SourceConfig
from quecc_jax.data import easyvqa
from quecc_jax.data.conversation import encode, image_refs
from quecc_jax.data.files import read_json
from quecc_jax.data.images import load_pixels
from quecc_jax.data.pool import read_features, read_pool
from quecc_jax.data.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.errors import BadRow, UserError
from quecc_jax.geometry import hidden_indices


class Encoded(NamedTuple):
    """One row, compact."""

    codes: np.ndarray
    """int32 [L] a token id, or -1 - k where slot k of the row's visual tokens stands."""
    loss: np.ndarray
    """bool [L] positions that carry loss."""
    query: np.ndarray
    """int32 [<= Q] bare question."""
    cut: bool
    """The row was truncated, or dropped if nothing is left of it."""


class Source(Protocol):
    """What the pipeline needs of a data set; pictures are written into zeroed arrays.

    Where pictures cannot be read, the writing methods raise BadRow, maybe after the first of several.
    """

    def __len__(self) -> int: ...

    def where(self, row: int) -> str:
        """The place of a row, for messages."""

    def encoded(self, row: int) -> Encoded:
        """The row without its pictures, which are not read. Raises BadRow."""

    def pictures(self, row: int) -> int:
        """How many pictures the row has; asked of rows that `encoded` takes."""

    def write_pixels(self, row: int, out: np.ndarray) -> None:
        """Writes the pictures into the first places of uint8 [I, H, W, 3]."""

    def write_features(self, row: int, out: np.ndarray) -> None:
        """Writes cached tower states into the first places of float16 [I, n, K, D]."""


class Layout(NamedTuple):
    """How rows are laid out: everything that `encode` needs beside the row."""

    tokenizer: Tokenizer
    data: DataConfig
    visual_tokens: int
    prompts: bool
    """Stop where the first answer begins, for generation."""

    def __call__(self, row: dict[str, Any]) -> Encoded:
        """Encodes a row, or raises BadRow; the caller adds where it stands."""
        made = encode(row, self.tokenizer, self.data, self.visual_tokens, prompt=self.prompts)
        slots = made["slots"]
        return Encoded(np.where(slots >= 0, -1 - slots, made["tokens"]), made["labels"] >= 0, made["query"],
                       bool(made["cut"]))


class FileSource:
    """Rows of a LLaVA file or of easy-VQA, encoded when asked for, with pictures in files."""

    def __init__(self, name: str, rows: Sequence[dict[str, Any]], images: str, layout: Layout,
                 model: ModelConfig):
        self.name, self.rows, self.images = name, rows, images
        self.layout, self.vision = layout, model.vision

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        return f"{self.name}, row {row + 1}"

    def encoded(self, row: int) -> Encoded:
        try:
            return self.layout(self.rows[row])
        except BadRow as error:
            raise error.at(self.where(row)) from None

    def pictures(self, row: int) -> int:
        return len(image_refs(self.rows[row]))

    def write_pixels(self, row: int, out: np.ndarray) -> None:
        for place, ref in enumerate(image_refs(self.rows[row])):
            try:
                out[place] = load_pixels(os.path.join(self.images, str(ref)), self.vision,
                                         self.layout.data.image_aspect)
            except BadRow as error:
                raise error.at(self.where(row)) from None

    def write_features(self, row: int, out: np.ndarray) -> None:
        raise UserError(f"{self.name} has no cached features; set data.cached_features = False")


class PoolSource:
    """Rows of a pool, all encoded when it is opened.

    Demo questions repeat thousands of times over different pictures, so each different conversation
    is encoded and stored once.
    """

    def __init__(self, directory: str, layout: Layout, model: ModelConfig, fingerprint: str | None):
        pool = read_pool(directory)
        self.name = str(directory)
        refs = [image_refs(row) for row in pool.rows]
        for row, chosen in enumerate(refs):
            if not all(isinstance(ref, int) and 0 <= ref < len(pool.images) for ref in chosen):
                raise UserError(f"{directory}/rows.jsonl, row {row + 1}: picture {chosen} is not among the "
                                f"pool's {len(pool.images)}; make the pool anew")
        self._first = _offsets([len(chosen) for chosen in refs])
        self._refs = np.array([ref for chosen in refs for ref in chosen], np.int64)
        self._table(pool.rows, layout)
        self._pixels: _Mapped | None = None
        self._features: _Mapped | None = None
        if not len(pool.images) or not layout.data.images_per_row:
            return
        if layout.data.cached_features:
            self._check_features(read_features(pool, fingerprint), model)
            self._features = _Mapped(str(pool.directory / "features.npy"))
        else:
            size = model.vision.image_size
            if pool.images.shape[1:3] != (size, size):
                raise UserError(f"{directory} holds pictures of {pool.images.shape[1]} pixels but "
                                f"vision.image_size is {size}; build the pool at {size}")
            self._pixels = _Mapped(str(pool.directory / "images.npy"))

    def _table(self, rows: Sequence[dict[str, Any]], layout: Layout) -> None:
        place: dict[tuple, int] = {}
        kinds: list[Encoded] = []
        self._kind = np.empty(len(rows), np.int32)
        self._bad: dict[int, BadRow] = {}
        for number, row in enumerate(rows):
            turns = row.get("conversations")
            key = (str(turns), len(image_refs(row)))
            if key not in place:
                place[key] = len(kinds)
                try:
                    kinds.append(layout(row))
                except BadRow as error:
                    if layout.data.bad_rows == "error":
                        raise error.at(self.where(number)) from None
                    self._bad[len(kinds)] = error.at(self.where(number))
                    none = np.zeros(0, np.int32)
                    kinds.append(Encoded(none, none > 0, none, False))
            self._kind[number] = place[key]
        self._start = _offsets([len(kind.codes) for kind in kinds])
        self._query_start = _offsets([len(kind.query) for kind in kinds])
        self._codes = np.concatenate([np.zeros(0, np.int32), *(kind.codes for kind in kinds)])
        self._loss = np.concatenate([np.zeros(0, bool), *(kind.loss for kind in kinds)])
        self._query = np.concatenate([np.zeros(0, np.int32), *(kind.query for kind in kinds)])
        self._cut = np.array([kind.cut for kind in kinds], bool)

    def _check_features(self, features: np.ndarray, model: ModelConfig) -> None:
        wanted = (model.vision.patches, len(hidden_indices(model.vision)), model.vision.width)
        if features.shape[1:] != wanted:
            raise UserError(f"the features of {self.name} are {features.shape[1:]} per picture but "
                            f"model.vision asks for {wanted} (patches, states, width); write them anew")

    def __len__(self) -> int:
        return len(self._kind)

    def where(self, row: int) -> str:
        return f"{self.name}/rows.jsonl, row {row + 1}"

    def encoded(self, row: int) -> Encoded:
        kind = int(self._kind[row])
        if kind in self._bad:
            raise self._bad[kind]
        span = slice(self._start[kind], self._start[kind + 1])
        query = self._query[self._query_start[kind]:self._query_start[kind + 1]]
        return Encoded(self._codes[span], self._loss[span], query, bool(self._cut[kind]))

    def pictures(self, row: int) -> int:
        return int(self._first[row + 1] - self._first[row])

    def write_pixels(self, row: int, out: np.ndarray) -> None:
        assert self._pixels is not None
        for place, ref in enumerate(self._refs[self._first[row]:self._first[row + 1]]):
            out[place] = self._pixels.array[ref]

    def write_features(self, row: int, out: np.ndarray) -> None:
        assert self._features is not None
        for place, ref in enumerate(self._refs[self._first[row]:self._first[row + 1]]):
            out[place] = self._features.array[ref]


class _Mapped:
    """A memory-mapped array that pickles as its path, so that worker processes map it themselves."""

    def __init__(self, path: str):
        self.path = path
        # A plain view of the map: indexing a memmap object itself is several times slower.
        self.array = np.asarray(np.load(path, mmap_mode="r")).view(np.ndarray)

    def __reduce__(self) -> tuple:
        return _Mapped, (self.path,)


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def open_sources(data: DataConfig, model: ModelConfig, fingerprint: str | None = None,
                 prompts: bool = False) -> list[Source]:
    """Opens the sources of a run in the order of the config.

    Args:
      data: Sources, tokenizer, template and lengths.
      model: Gives the visual tokens of a picture and the tower's sizes.
      fingerprint: The tower that cached features must be of; None takes any.
      prompts: Lay rows out for generation: stop where the first answer begins.

    Raises:
      UserError: no source, an empty or unreadable one, one without the features that are asked for, or
        a tokenizer with more tokens than the model.
    """
    if not data.sources:
        raise UserError("data.sources is empty; name at least one data set")
    tokenizer, room = load_tokenizer(data.tokenizer), model.decoder.vocab_size
    if len(tokenizer) > room:
        raise UserError(f"the tokenizer in {data.tokenizer} has {len(tokenizer)} tokens, but "
                        f"model.decoder.vocab_size is {room}; raise it or give the model's own tokenizer")
    layout = Layout(tokenizer, data, model.visual_tokens, prompts)
    sources: list[Source] = []
    for config in data.sources:
        if config.kind == "pool":
            sources.append(PoolSource(config.path, layout, model, fingerprint))
        elif data.cached_features:
            raise UserError(f"data.cached_features needs pools, but a source is {config.kind}; "
                            "build a pool from it or set data.cached_features = False")
        else:
            name = config.path if config.kind == "llava_json" else f"easy-VQA {config.split}"
            sources.append(FileSource(name, read_rows(config), config.images, layout, model))
        if not len(sources[-1]):
            raise UserError(f"source {config.path or config.kind} has no rows; remove it or fill it")
    return sources


def read_rows(config: SourceConfig) -> list[dict[str, Any]]:
    """The LLaVA-format rows of one source, as they stand in it.

    Raises:
      UserError: the source cannot be read or is not a list of rows.
    """
    if config.kind == "pool":
        return read_pool(config.path).rows
    if config.kind == "easy_vqa":
        return easyvqa.rows(config.split)
    rows = read_json(config.path)
    if not isinstance(rows, list):
        raise UserError(f"{config.path} is not a list of rows; give a LLaVA-format .json or .jsonl file")
    return rows
