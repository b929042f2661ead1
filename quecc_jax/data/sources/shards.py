"""Numbered records in ArrayRecord shards that appear whole, survive a kill one by one, and are checksummed.

A shard is written aside and renamed; then a note beside it says what it holds. Making a set of shards
again skips those whose note is there and was written under the same key. The manifest of the whole set,
written last, takes over what the notes say.
"""

import hashlib
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from quecc_jax.checksums import spread
from quecc_jax.data.files import size_and_time
from quecc_jax.errors import UserError
from quecc_jax.paths import AnyPath, as_path, cached, is_remote, local_output, replacing
from quecc_jax.records import Count, Damaged, read_record, write_record

OPTIONS = "group_size:1,uncompressed"
"""Of ArrayRecord's writer: records are read one by one in random order, and hold compressed images."""
BLOCK = 4 << 20
"""Bytes that are hashed at once."""


class Shard(NamedTuple):
    """One file of a set."""

    name: str
    records: Count
    bytes: Count
    sha256: str
    crc32: Count | None = None
    """Of places all over it, see `checksums.spread`: what is compared when it is opened. That each record is right,
    the file says itself. Version 0.1 wrote none."""


class _Note(TypedDict):
    """What the note beside a shard says."""

    key: str
    shard: Shard
    remarks: list[Any]


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
        shard = Shard(name, count, aside.stat().st_size, digest(aside), spread(aside)[1])
    write_record(f"{directory}/{note.name}", {"key": key, "shard": shard, "remarks": list(remarks)})
    return shard


def find_shard(directory: AnyPath, name: str, key: str) -> tuple[Shard, list[Any]] | None:
    """A shard that was written whole under this key, with its remarks; None where there is none."""
    path = as_path(directory) / name
    try:
        note = read_record(_note(directory, name), _Note, "delete it")
        shard = note["shard"]
        same = (note["key"], shard.name) == (key, name) and size_and_time(path)[0] == shard.bytes
        if not same or not (is_remote(path) or spread(path)[1] == shard.crc32):
            return None
    except (OSError, Damaged):
        return None
    return shard, note["remarks"]


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
        reader = self._reader(shard)
        try:
            return reader[number - first]
        except Exception as error:  # of ArrayRecord, which has kinds of its own
            path, reason = f"{self.directory}/{self.shards[shard].name}", str(error).partition("\n")[0][:200]
            raise UserError(f"{path} is damaged at record {number - first} ({reason}); {AGAIN}") from None

    def _reader(self, number: int) -> Sequence[bytes]:
        if number not in self._readers:
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            shard = self.shards[number]
            path = f"{self.directory}/{shard.name}"
            try:
                local = cached(path, shard.sha256)
                if is_remote(path) and _differs(local, shard):
                    # The copy is at fault, or the bucket.
                    local.unlink()
                    local = cached(path, shard.sha256)
                if not (fault := _differs(local, shard)):
                    self._readers[number] = ArrayRecordDataSource(f"{local}[0:{shard.records}]")
            except OSError as error:
                raise UserError(f"{path} cannot be read ({error.strerror or error}); {AGAIN}") from None
            except Exception as error:  # of ArrayRecord, which has kinds of its own
                fault = f"cannot be opened ({str(error).partition(chr(10))[0][:200]})"
            if fault:
                raise UserError(f"{path} {fault}; {AGAIN}")
        return self._readers[number]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_readers": {}}


def _differs(local: Path, shard: Shard) -> str:
    """What of a file is not a shard's, as the rest of a sentence; empty if nothing is. Raises OSError."""
    size, crc32 = spread(local)
    if size != shard.bytes:
        return f"has {size} bytes, not {shard.bytes}"
    return (
        ""
        if shard.crc32 in (None, crc32)
        else "is damaged, or another shard: its checksum is not the manifest's"
    )


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
