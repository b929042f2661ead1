"""Sources: numbered rows, each as token ids with slots, its query, and its pictures."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from quecc_jax.config import DataConfig, ModelConfig, SourceConfig
from quecc_jax.config.shapes import state_shape
from quecc_jax.data.elastic import text_length
from quecc_jax.data.folders import FilePictures, FolderPictures, Folders
from quecc_jax.data.references import image_refs
from quecc_jax.data.sources import easy_vqa
from quecc_jax.data.sources.feature_store import Features, read_features
from quecc_jax.data.sources.json_rows import RowFile
from quecc_jax.data.sources.mixture import Mixture, open_rows
from quecc_jax.data.sources.pool import read_pool
from quecc_jax.data.sources.prepared import PreparedPictures, check_recipe, open_prepared
from quecc_jax.data.text.conversation import encode
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.data.tiles import Arrangement, arrange
from quecc_jax.errors import BadRow, UserError

SAMPLED = 256
"""Rows whose questions tell tokenizers apart."""


class Encoded(NamedTuple):
    """One row, compact."""

    codes: np.ndarray
    """int32 [L] a token id, or -1 - k where slot k of the row's visual tokens stands."""
    loss: np.ndarray
    """bool [L] positions that carry loss."""
    queries: np.ndarray
    """int32 [<= Q] bare questions about its pictures, one behind the other."""
    query_ends: np.ndarray
    """int32 [P] where among them the question ends about the picture in each of P places."""
    query_cut: bool
    """A question was cut."""
    cut: bool
    """The row was truncated, or dropped if nothing is left of it."""

    @property
    def places(self) -> int:
        """Places among the pictures of a batch's row that its pictures take: one each, or more with tiles."""
        return len(self.query_ends)


class Source(Protocol):
    """What the pipeline needs of a data set; pictures are written into zeroed arrays.

    Where pictures cannot be read, the writing methods raise BadRow, maybe after the first of several.
    """

    def __len__(self) -> int: ...

    def where(self, row: int) -> str:
        """The place of a row, for messages."""

    def encoded(self, row: int) -> Encoded:
        """The row without its pictures, of which the size at most is read. Raises BadRow."""

    def write_pixels(self, row: int, out: np.ndarray) -> None:
        """Writes the pictures into the first places of uint8 [I, H, W, 3]."""

    def write_features(self, row: int, out: np.ndarray) -> None:
        """Writes cached tower states into the first places of float16 [I, n, K, D]."""

    def query(self, row: int) -> np.ndarray:
        """The cached query feature, float16 [H]; asked of rows that `encoded` takes."""


class Arrange(NamedTuple):
    """What stands for an any-resolution picture, which is asked for its size alone."""

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
    """What holds for a row without pictures in place of `data`, if anything does."""
    arrange: Arrange | None = None
    """What stands for a picture, by its reference; None for its V tokens."""

    def __call__(self, row: dict[str, Any]) -> Encoded:
        """Encodes a row, or raises BadRow; the caller adds where it stands."""
        # What is no row at all has no pictures either; `encode` says so.
        refs = image_refs(row) if isinstance(row, dict) else []
        data = self.data if refs or self.text is None else self.text
        arranged = [self.arrange(ref) for ref in refs] if self.arrange else []
        made = encode(row, self.tokenizer, data, self.visual_tokens, self.prompts, arranged)
        slots = made["slots"]
        return Encoded(
            np.where(slots >= 0, -1 - slots, made["tokens"]),
            made["labels"] >= 0,
            made["query"],
            made["query_ends"],
            bool(made["query_cut"]),
            bool(made["cut"]),
        )


class RowSource:
    """Rows that are encoded when asked for, with pictures that are read when asked for."""

    def __init__(
        self,
        name: str,
        rows: Sequence[dict[str, Any]],
        read: Callable[[Any], np.ndarray],
        layout: Layout,
        features: Features | None = None,
        queries: Features | None = None,
    ):
        """
        Args:
          name: for messages.
          rows: in LLaVA's form; parsed one by one.
          read: a picture, uint8 [H, W, 3], by its reference in a row.
          layout: of the rows.
          features: stored tower states, where rows name pictures by number.
          queries: stored query features, by row.
        """
        self.name, self.rows, self.layout = name, rows, layout
        self._read, self._features, self._queries = read, features, queries
        self._last: tuple[int, dict[str, Any]] = (-1, {})

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, row: int) -> str:
        if isinstance(self.rows, RowFile | Mixture):
            return self.rows.where(row)
        return f"{self.name}, row {row + 1}"

    def row(self, number: int) -> dict[str, Any]:
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
        self._write(row, self._read, out)

    def query(self, row: int) -> np.ndarray:
        assert self._queries is not None
        return self._queries[row]

    def write_features(self, row: int, out: np.ndarray) -> None:
        assert self._features is not None
        self._write(row, self._features.__getitem__, out)

    def _write(self, row: int, read: Callable[[Any], np.ndarray], out: np.ndarray) -> None:
        place = 0
        for ref in image_refs(self.row(row)):
            try:
                seen = read(ref).reshape(-1, *out.shape[1:])
            except BadRow as error:
                raise error.at(self.where(row)) from None
            out[place : place + len(seen)] = seen
            place += len(seen)


class Questions:
    """The bare questions of rows, as numbers for their encoder."""

    def __init__(self, rows: Sequence[dict[str, Any]], layout: Layout):
        self.rows, self.limit = rows, layout.data.query_length
        # A question depends on no template and no length but its own.
        data = dataclasses.replace(
            layout.data,
            template="v1",
            query_length=layout.data.query_limit,
            max_length=1 << 20,
            images_per_row=64,
        )
        self.layout = layout._replace(data=data, text=None, arrange=None)

    def ids(self, row: int) -> np.ndarray:
        """int32 [<= Q]: token ids of the question about a row's pictures, none without a picture.

        Raises:
          BadRow: the row cannot be read, or different turns ask about its pictures.
        """
        made = self.layout(self.rows[row])
        if len(set(made.query_ends.tolist())) > 1:
            raise BadRow(
                "turns",
                "its pictures stand in different turns, and stored queries are one a row; "
                "set data.cached_queries = False, or make a row of each turn",
            )
        return made.queries

    def __call__(self, row: int) -> np.ndarray:
        """int32 [Q + 1]: the row's `ids`, filled up with zeros, and their number; or BadRow."""
        ids = self.ids(row)
        room = self.layout.data.query_limit - len(ids)
        return np.concatenate([ids, np.zeros(room, np.int32), [len(ids)]]).astype(np.int32)

    def fingerprint(self) -> str:
        """Of the limit that is set, and of the tokenizer by what it makes of SAMPLED rows."""
        total = hashlib.sha256(str(self.limit).encode())
        for row in np.linspace(0, len(self.rows) - 1, min(SAMPLED, len(self.rows))).astype(int).tolist():
            with contextlib.suppress(BadRow):
                ids = self.ids(row)
                total.update(np.array([len(ids), *ids], np.int32).tobytes())
        return total.hexdigest()[:16]


def check_questions(name: str, queries: Features, questions: Questions) -> None:
    """Raises UserError if stored query features are of questions in other tokens."""
    if queries.fingerprint.rpartition("-")[2] != questions.fingerprint():
        raise UserError(
            f"the queries of {name} were made with another tokenizer or data.query_length; write "
            "them anew with launch.prepare_data --queries, or set data.cached_queries = False"
        )


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
                raise UserError(
                    f"{directory}/rows.jsonl, row {row + 1}: picture {chosen} is not among the "
                    f"pool's {len(pool.images)}; make the pool anew"
                )
        self._first = _offsets([len(chosen) for chosen in refs])
        self._refs = np.array([ref for chosen in refs for ref in chosen], np.int64)
        self._table(pool.rows, layout)
        self._pixels: _Mapped | None = None
        self._features: Features | None = None
        if not len(pool.images) or not layout.data.images_per_row:
            return
        if layout.data.cached_features:
            self._features = _tower_features(directory, model, fingerprint)
        else:
            size = model.vision.input_size
            if pool.images.shape[1:3] != (size, size):
                raise UserError(
                    f"{directory} holds pictures of {pool.images.shape[1]} pixels but "
                    f"vision.input_size is {size}; build the pool at {size}"
                )
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
                    kinds.append(Encoded(none, none > 0, none, none, False, False))
            self._kind[number] = place[key]
        self._start = _offsets([len(kind.codes) for kind in kinds])
        self._query_start = _offsets([len(kind.queries) for kind in kinds])
        self._ends_start = _offsets([kind.places for kind in kinds])
        self._codes = np.concatenate([np.zeros(0, np.int32), *(kind.codes for kind in kinds)])
        self._loss = np.concatenate([np.zeros(0, bool), *(kind.loss for kind in kinds)])
        self._query = np.concatenate([np.zeros(0, np.int32), *(kind.queries for kind in kinds)])
        self._query_ends = np.concatenate([np.zeros(0, np.int32), *(kind.query_ends for kind in kinds)])
        self._cut = np.array([(kind.query_cut, kind.cut) for kind in kinds], bool).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._kind)

    def where(self, row: int) -> str:
        return f"{self.name}/rows.jsonl, row {row + 1}"

    def encoded(self, row: int) -> Encoded:
        kind = int(self._kind[row])
        if kind in self._bad:
            raise self._bad[kind]
        span = slice(self._start[kind], self._start[kind + 1])
        queries = self._query[self._query_start[kind] : self._query_start[kind + 1]]
        ends = self._query_ends[self._ends_start[kind] : self._ends_start[kind + 1]]
        return Encoded(self._codes[span], self._loss[span], queries, ends, *self._cut[kind].tolist())

    def write_pixels(self, row: int, out: np.ndarray) -> None:
        assert self._pixels is not None
        for place, ref in enumerate(self._refs[self._first[row] : self._first[row + 1]]):
            out[place] = self._pixels.array[ref]

    def query(self, row: int) -> np.ndarray:
        raise UserError(f"{self.name} has no cached queries; set data.cached_queries = False")

    def write_features(self, row: int, out: np.ndarray) -> None:
        assert self._features is not None
        for place, ref in enumerate(self._refs[self._first[row] : self._first[row + 1]]):
            out[place] = self._features[ref]


def _tower_features(directory: str, model: ModelConfig, fingerprint: str | None) -> Features:
    """Stored tower states of the shape that the model reads.

    Raises:
      UserError: there are none, or they are of another tower.
    """
    found = read_features(directory, fingerprint)
    wanted = state_shape(model.tower)
    if found.shape[1:] != wanted:
        raise UserError(
            f"the features of {directory} are {found.shape[1:]} per picture but "
            f"model.vision and {model.compressor.name} ask for {wanted} (patches, states, "
            "width); write them anew"
        )
    return found


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


def check_vocabularies(tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Raises UserError if a tokenizer has more tokens than what reads them."""
    readers = [
        ("model.decoder", tokenizer, model.decoder.vocab_size),
        ("model.query.text", tokenizer.questions, model.query.text.vocab_size),
    ]
    for name, one, room in readers:
        if one is not None and len(one) > room:
            raise UserError(
                f"the tokenizer in {one.directory} has {len(one)} tokens, but {name}.vocab_size "
                f"is {room}; raise it or give the model's own tokenizer"
            )


def open_sources(
    data: DataConfig, model: ModelConfig, fingerprint: str | None = None, prompts: bool = False
) -> list[Source]:
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
    tokenizer = load_tokenizer(data.tokenizer, data.query_tokenizer)
    check_vocabularies(tokenizer, model)
    text = dataclasses.replace(data, max_length=text_length(data, model))
    layout = Layout(tokenizer, data, model.visual_tokens, prompts, text)
    sources: list[Source] = []
    for config in data.sources:
        if config.kind == "pool":
            sources.append(PoolSource(config.path, layout, model, fingerprint))
        elif data.cached_queries and config.kind != "array_record":
            raise UserError(
                f"data.cached_queries needs prepared data, but a source is {config.kind}; make "
                "it with launch.prepare_data, or set data.cached_queries = False"
            )
        elif data.cached_features and config.kind != "array_record":
            raise UserError(
                "data.cached_features needs prepared data or pools, but a source is "
                f"{config.kind}; make it with launch.prepare_data, or set "
                "data.cached_features = False"
            )
        else:
            sources.append(_row_source(config, layout, model, fingerprint))
        if not len(sources[-1]):
            raise UserError(f"source {config.path or config.kind} has no rows; remove it or fill it")
    return sources


def _row_source(config: SourceConfig, layout: Layout, model: ModelConfig, fingerprint: str | None) -> Source:
    data, vision, rows = layout.data, model.vision, read_rows(config)
    read: PreparedPictures | FilePictures | FolderPictures
    features = queries = None
    if config.kind == "array_record":
        read = PreparedPictures(open_prepared(config.path), vision, data)
        if data.cached_features and data.images_per_row:
            features = _tower_features(config.path, model, fingerprint)
        if data.cached_queries:
            queries = read_features(config.path, name="queries")
            check_questions(config.path, queries, Questions(rows, layout))
    elif config.kind == "tfds":
        from quecc_jax.data.sources.tfds import TfdsRows

        assert isinstance(rows, TfdsRows)
        check_recipe(config.path, rows.recipe, vision, data)
        read = FilePictures(vision, data)
    else:
        read = FolderPictures(Folders(config.roots), vision, data)
    if vision.tiles and data.images_per_row:
        layout = layout._replace(arrange=Arrange(read.size, model))
    return RowSource(config.path or f"easy-VQA {config.split}", rows, read, layout, features, queries)


def read_rows(config: SourceConfig) -> Sequence[dict[str, Any]]:
    """The LLaVA-format rows of one source, as they stand in it.

    Raises:
      UserError: the source cannot be read or is not a list of rows. Where rows are parsed one by one,
        a damaged one raises when it is asked for.
    """
    if config.kind == "pool":
        return read_pool(config.path).rows
    if config.kind == "easy_vqa":
        if config.split not in ("train", "test"):
            raise UserError(f"easy-VQA has no split {config.split!r}; take train or test")
        return easy_vqa.rows(config.split)  # type: ignore[arg-type]
    if config.kind == "array_record":
        return open_prepared(config.path).rows
    if config.kind == "tfds":
        # Imported late: it takes a second, and few runs read such data.
        from quecc_jax.data.sources.tfds import TfdsRows

        return TfdsRows(config.path, config.split)
    return open_rows(config.path)
