"""Numbered records in ArrayRecord shards that appear whole, survive a kill one by one, and are checksummed.

A shard is written aside and renamed; then a note beside it says what it holds. Making a set of shards
again skips those whose note is there and was written under the same key. The manifest of the whole set,
written last, takes over what the notes say.
"""

import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quecc_jax.data.files import size_and_time
from quecc_jax.errors import UserError
from quecc_jax.paths import AnyPath, as_path, cached, local_output, replacing, write_text

OPTIONS = "group_size:1,uncompressed"
"""Of ArrayRecord's writer: records are read one by one in random order, and hold compressed images."""
BLOCK = 4 << 20
"""Bytes that are hashed at once."""


class Shard(NamedTuple):
    """One file of a set."""

    name: str
    records: int
    bytes: int
    sha256: str


def shard_spans(kind: str, items: int, per_shard: int) -> list[tuple[str, range]]:
    """The name of every shard of a set of items, and the numbers of its items."""
    starts = range(0, items, per_shard)
    return [
        (f"{kind}-{number:05}-of-{len(starts):05}.array_record", range(start, min(start + per_shard, items)))
        for number, start in enumerate(starts)
    ]


def write_shard(
    directory: AnyPath, name: str, key: str, records: Iterable[bytes], remarks: Sequence[object] = ()
) -> Shard:
    """Writes a shard, which replaces one of the same name.

    Args:
      directory: exists; may lie in a bucket.
      key: says how the records were made.
      records: read once, as they are written.
      remarks: JSON values for the note, which may grow while `records` are read.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    note = _note(directory, name)
    note.unlink(missing_ok=True)
    with local_output(directory) as folder, replacing(folder / name) as aside:
        writer, count = ArrayRecordWriter(str(aside), OPTIONS), 0
        try:
            for record in records:
                writer.write(record)
                count += 1
        finally:
            writer.close()
        shard = Shard(name, count, aside.stat().st_size, digest(aside))
    write_text(f"{directory}/{note.name}", json.dumps([key, shard, list(remarks)]))
    return shard


def find_shard(directory: AnyPath, name: str, key: str) -> tuple[Shard, list[Any]] | None:
    """A shard that was written whole under this key, with its remarks; None where there is none."""
    try:
        found, shard, remarks = json.loads(_note(directory, name).read_text())
        size, _ = size_and_time(as_path(directory) / name)
    except (OSError, ValueError):
        return None
    shard = Shard(*shard)
    return (shard, remarks) if found == key and size == shard.bytes else None


def delete_notes(directory: AnyPath, shards: Iterable[Shard]) -> None:
    """Deletes the notes of shards that a manifest now lists."""
    for shard in shards:
        _note(directory, shard.name).unlink(missing_ok=True)


def _note(directory: AnyPath, name: str) -> Path:
    return as_path(directory) / f".{name}.json"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
    return total.hexdigest()


class Records(Sequence[bytes]):
    """The records of a set of shards, by number, read when asked for.

    Shards of a bucket are copied to this machine one by one, each when one of its records is first asked
    for. Pickles as names, so that worker processes open the files themselves.
    """

    def __init__(self, directory: AnyPath, shards: Iterable[Shard]):
        self.directory, self.shards = str(directory), list(shards)
        self._ends = list(itertools.accumulate(shard.records for shard in self.shards))
        self._readers: dict[int, Sequence[bytes]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> bytes:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = bisect_right(self._ends, number)
        first = self._ends[shard] - self.shards[shard].records
        return self._reader(shard)[number - first]

    def _reader(self, number: int) -> Sequence[bytes]:
        if number not in self._readers:
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            shard = self.shards[number]
            path = f"{self.directory}/{shard.name}"
            try:
                local = cached(path, shard.sha256)
                size = local.stat().st_size
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror or error}); {AGAIN}") from None
            if size != shard.bytes:
                raise UserError(f"{path} has {size} bytes, not {shard.bytes}; {AGAIN}")
            self._readers[number] = ArrayRecordDataSource(f"{local}[0:{shard.records}]")
        return self._readers[number]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_readers": {}}


AGAIN = "copy the directory again, or delete the file and prepare it anew"


def check(directory: AnyPath, shard: Shard) -> None:
    """Reads a whole shard against its checksum.

    Raises:
      UserError: it is missing or holds other bytes.
    """
    path = f"{directory}/{shard.name}"
    try:
        same = digest(as_path(path)) == shard.sha256
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {AGAIN}") from None
    if not same:
        raise UserError(f"{path} is damaged: its SHA-256 is not the manifest's; {AGAIN}")
