"""Parquet data sets as the Hub publishes them: conversations as lists, images as the bytes of their files.

Three layouts are read, told apart by their columns:

    conversations: list of {from, value}, image or images     LLaVA-OneVision-Data, LLaVA-NeXT-Data
    texts: list of {user, assistant}, images                  The Cauldron, FineVision

A row is found in its row group, of which only the columns that are asked for are decoded.
"""

import bisect
import re
import threading
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from cachetools import LRUCache

from quecc_jax.data.files import size_and_time
from quecc_jax.data.references import ImageRef, Row, is_input
from quecc_jax.data.text.templates import PLACEHOLDER
from quecc_jax.errors import BadRow, UserError
from quecc_jax.paths import AnyPath, as_path, cached, is_remote

IMAGES = 1024
"""Images that a row may have; an image's reference is its row's number times this, plus its place."""
KEPT = 256 << 20
"""Bytes of decoded row groups that a process keeps."""
SPLITS = ("train", "validation", "val", "dev", "test")
"""Names of files that are the name of a split."""

_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]{16})?", re.A)


class Columns(NamedTuple):
    """Where a table keeps what is read of it."""

    turns: str
    """`conversations` or `texts`."""
    images: str
    """`image`, `images`, or empty where a table has text alone."""
    counted: str
    """Leaf of `images` by which a row's images are counted, much smaller than their bytes where there is one."""
    id: str
    """`id`, or empty."""


class Group(NamedTuple):
    """A row group."""

    file: int
    number: int
    """In its file."""
    before: int
    """Rows of its file in front of it."""
    start: int
    """Its first row among those of all files."""


class ParquetRows(Sequence[Row]):
    """The rows of a Parquet file, or of a directory's files of one split, in the order of their names.

    In a row, `image` holds references that `image` below resolves. Images of `texts`, which has no placeholders,
    stand in front of the first question. Pickles as paths and positions.

    Args:
      path: the file or the directory, or a data set's whose files lie in its folder `data`; here or in a bucket.
      split: of files that are named by it, as in `train-00000-of-00002.parquet`.

    Raises:
      UserError: there are no such files, a shard is missing, one is damaged or of another layout than is read here.
      BadRow: when it is asked for, of a row in a damaged part of a file; the caller adds `where` it stands.
    """

    def __init__(self, path: AnyPath, split: str = "train"):
        self.path = str(path)
        self.names = [str(file) for file in files_of(path, split)]
        self._files = [str(cached(name)) if is_remote(name) else name for name in self.names]
        opened = [_opened(name, file) for name, file in zip(self.names, self._files, strict=True)]
        self.columns = _columns(self.names[0], opened[0])
        for name, file in zip(self.names, opened, strict=True):
            if _columns(name, file) != self.columns:
                raise UserError(f"{name} has other columns than {self.names[0]}; name data sets one by one")
        self._groups, self._ends = list[Group](), list[int]()
        total = 0
        for number, file in enumerate(opened):
            first = total
            for group in range(file.metadata.num_row_groups):
                self._groups.append(Group(number, group, total - first, total))
                total += file.metadata.row_group(group).num_rows
                self._ends.append(total)
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._tables: LRUCache[tuple[int, str], pa.Table] = LRUCache(KEPT, lambda table: table.nbytes)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_tables")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, row: int) -> Row:  # type: ignore[override]
        columns, row = self.columns, range(len(self))[row]
        said = self._value(row, columns.turns).as_py()
        known = self._value(row, columns.counted).as_py() if columns.images else None
        images = len(known) if isinstance(known, list) else int(known is not None)
        if images > IMAGES:
            raise BadRow("too many pictures", f"it has {images} images, of which {IMAGES} can be told apart")
        made = {"id": self._value(row, columns.id).as_py()} if columns.id else {}
        refs = [row * IMAGES + number for number in range(images)]
        turns = (
            said if columns.turns == "conversations" or not isinstance(said, list) else _turns(said, images)
        )
        return {**made, **({"image": refs} if refs else {}), "conversations": turns}

    def image(self, ref: ImageRef) -> BytesIO:
        """The bytes of an image's file. Raises BadRow if the table has none, or its part of the file is damaged."""
        if not isinstance(ref, int) or not 0 <= ref < len(self) * IMAGES:
            raise BadRow("not a row", f"its image {ref!r} is not one of {self.path}; name it as its row does")
        row, number = divmod(ref, IMAGES)
        found = self._value(row, self.columns.images)
        one = (found[number] if isinstance(found, pa.ListScalar | pa.LargeListScalar) else found).as_py()
        data = one.get("bytes") if isinstance(one, dict) else one
        if not isinstance(data, bytes) or not data:
            named = f", but names {one['path']}" if isinstance(one, dict) and one.get("path") else ""
            raise BadRow(
                "picture missing",
                f"image {number + 1} has no bytes in the table{named}; download the data set with its images",
            )
        return BytesIO(data)

    def where(self, row: int) -> str:
        """The row's file and its number there, from 1, for messages."""
        group = self._group(row)
        return f"{self.names[group.file]}, row {row - group.start + group.before + 1}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size_and_time(file)[0] for file in self._files)

    @property
    def stamp(self) -> tuple[object, ...]:
        """Of each file the CRC-32 of its footer, which has place and size of all parts, bytes and time of change."""
        return tuple((_footer_crc(file), *size_and_time(file)) for file in self._files)

    def _group(self, row: int) -> Group:
        return self._groups[bisect.bisect_right(self._ends, row)]

    def _value(self, row: int, column: str) -> pa.Scalar:
        """What a column, or a leaf of one, holds in a row."""
        group = self._group(row)
        key = (group.start, column)
        with self._lock:
            table = self._tables.get(key)
        if table is None:
            table = self._read(group, column)
            if table.nbytes <= KEPT:
                with self._lock:
                    self._tables[key] = table
        return table.column(0)[row - group.start]

    def _read(self, group: Group, column: str) -> pa.Table:
        try:
            with pq.ParquetFile(self._files[group.file], page_checksum_verification=True) as file:
                return file.read_row_group(group.number, columns=[column], use_threads=False)
        except (OSError, pa.ArrowException, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise BadRow(
                "not a row",
                f"row group {group.number + 1} of the file is damaged ({reason}); download it again",
            ) from None


def files_of(path: AnyPath, split: str) -> list[Path]:
    """The Parquet files of a path, in the order of their names; where their names hold splits, those of one.

    Raises:
      UserError: there are none or not all of them, or the directory holds several data sets.
    """
    folder = as_path(path)
    if not folder.is_dir():
        return [folder]
    found = sorted(folder.glob("*.parquet"))
    if not found and (folder / "data").is_dir():
        found = sorted((folder / "data").glob("*.parquet"))
    if not found:
        below = sorted(
            file.name for file in folder.iterdir() if file.is_dir() and any(file.glob("*.parquet"))
        )
        if below:
            some = ", ".join(below[:5]) + (", ..." if len(below) > 5 else "")
            raise UserError(f"{path} holds several data sets or splits ({some}); name the folder of one")
        raise UserError(f"{path} has no .parquet files; give a Parquet file or the folder of some")
    return _of_split(path, found, split)


def _of_split(path: AnyPath, files: list[Path], split: str) -> list[Path]:
    shards = {file: _SHARD.fullmatch(file.stem) for file in files}
    splits = {file: shard["split"] if shard else file.stem for file, shard in shards.items()}
    named = [file for file in files if shards[file] or file.stem in SPLITS]
    if not named:
        return files
    if len(named) < len(files):
        other = next(file for file in files if file not in named)
        raise UserError(
            f"{path} holds {named[0].name}, which names its split, and {other.name}, which does not; "
            "put them into different folders"
        )
    chosen = [file for file in files if splits[file] == split]
    if not chosen:
        there = ", ".join(sorted(set(splits.values())))
        raise UserError(f"{path} has no split {split!r} but {there}; name one with the source's split")
    counts = {shard["count"] for file in chosen if (shard := shards[file])}
    indices = sorted(int(shard["index"]) for file in chosen if (shard := shards[file]))
    if counts and (len(counts) > 1 or indices != list(range(int(min(counts))))):
        whole = int(max(counts))
        missing = sorted(set(range(whole)) - set(indices))
        what = f"shard {missing[0]} of {whole} is missing" if missing else "its shards are of several sets"
        raise UserError(f"{path}, split {split}: {what}; download the data set again")
    return chosen


def _opened(name: str, file: str) -> pq.ParquetFile:
    try:
        with open(file, "rb") as raw, pq.ParquetFile(raw) as opened:
            return opened
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror or error}); check the path") from None
    except pa.ArrowException as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{name} is not a whole Parquet file ({reason}); download it again") from None


def _columns(name: str, file: pq.ParquetFile) -> Columns:
    """What a file's columns are.

    Raises:
      UserError: they are none of the layouts that are read, or hold inputs that are not.
    """
    schema = file.schema_arrow
    fields = {field.name: field.type for field in schema}
    turns = [one for one in ("conversations", "texts") if one in fields]
    images = [one for one in ("image", "images") if one in fields]
    if len(turns) != 1 or len(images) > 1:
        what = (
            " and ".join(turns if len(turns) > 1 else images) if turns else "neither conversations nor texts"
        )
        raise UserError(
            f"{name} has {what} among its columns ({', '.join(fields)}); give it one of conversations and texts, "
            "and one of image and images"
        )
    wanted = ("from", "value") if turns[0] == "conversations" else ("user", "assistant")
    of_turns = fields[turns[0]]
    parts = of_turns.value_type if pa.types.is_list(of_turns) or pa.types.is_large_list(of_turns) else None
    if parts is None or not pa.types.is_struct(parts) or not {field.name for field in parts} >= set(wanted):
        raise UserError(
            f"{name} has {turns[0]} of type {of_turns}, not a list of {' and '.join(wanted)}; convert it"
        )
    for column, kind in fields.items():
        if column not in (*turns, *images) and (is_input(column) or _holds_bytes(kind)):
            raise UserError(
                f"{name} has a column {column!r}, and only text and images in a column image or images are read; "
                "remove it"
            )
    leaves = [file.schema.column(number).path for number in range(len(file.schema))]
    counted = [
        leaf for leaf in leaves if images and leaf.startswith(f"{images[0]}.") and leaf.endswith(".path")
    ]
    if images and not _holds_bytes(fields[images[0]]):
        raise UserError(
            f"{name} has {images[0]} of type {fields[images[0]]}, not the bytes of files; convert it"
        )
    return Columns(
        turns[0],
        images[0] if images else "",
        (*counted, *images, "")[0],
        "id" if "id" in fields and _is_name(fields["id"]) else "",
    )


def _is_name(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _holds_bytes(kind: pa.DataType) -> bool:
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or any(map(_holds_bytes, inner))


def _turns(said: list[Any], images: int) -> list[dict[str, object]]:
    """The turns of `texts` in LLaVA's form; a part that is no text stays what it is."""
    turns = [
        {"from": speaker, "value": one.get(key) if isinstance(one, dict) else one}
        for one in said
        for speaker, key in (("human", "user"), ("gpt", "assistant"))
    ]
    first = turns[0]["value"] if turns else None
    placed = any(isinstance(turn["value"], str) and PLACEHOLDER in turn["value"] for turn in turns)
    if images and isinstance(first, str) and not placed:
        turns[0]["value"] = f"{PLACEHOLDER}\n" * images + first
    return turns


def _footer_crc(file: str) -> int:
    """Of the bytes of a file's footer."""
    with open(file, "rb") as opened:
        opened.seek(-8, 2)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-8 - length, 2)
        return zlib.crc32(opened.read(length))
