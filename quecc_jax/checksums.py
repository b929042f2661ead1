"""Lists of a directory's files with their checksums, so that damaged, lost and swapped ones are seen."""

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from quecc_jax.paths import AnyPath, as_path, crc32, files_below, is_pipe, is_remote
from quecc_jax.records import CRC32, Count, Damaged, read_record, sealed, write_record

FILE = "checksums.json"
WHOLE = 1 << 20
"""Bytes up to which a file is read as a whole, unless a list says otherwise."""
BLOCK, BLOCKS = 1 << 12, 64
"""Of larger ones, bytes of the places that are read and their number, the first and last of the file among them."""


class Listing(TypedDict):
    """What checksums.json says."""

    name: str
    """Of the directory, where its name means something; else empty."""
    whole: Count
    """Bytes up to which files were read as a whole."""
    files: dict[str, tuple[Count, Count]]
    """Bytes and `spread` by path inside the directory."""


def spread(path: Path, whole: int = WHOLE) -> tuple[int, int]:
    """Bytes and CRC-32 of a file: of all of it up to `whole` bytes, else of BLOCKS places.

    That tells a file from any other that could stand in its place; that each of its bytes is right, large files
    say themselves, chunk by chunk.

    Raises:
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size <= max(whole, BLOCK):
            return size, crc32(path)
        total = 0
        for number in range(BLOCKS):
            file.seek((size - BLOCK) * number // (BLOCKS - 1))
            total = zlib.crc32(file.read(BLOCK), total)
        return size, total


def list_files(
    directory: AnyPath, files: Iterable[Path] | None = None, name: str = "", whole: int = WHOLE
) -> None:
    """Writes checksums.json of some files, or of all at any depth.

    Args:
      directory: local, or in a bucket, where checksums of files above `whole` bytes are left to the bucket.
      files: below it.
      name: of the directory, if `check_files` is to compare it.
      whole: bytes up to which a file is read as a whole.

    Raises:
      OSError: a file cannot be read, or the list not written.
    """
    root = as_path(directory)
    if files is None:
        files = (path for path in files_below(root) if path.name != FILE)
    found = {str(path.relative_to(root)): _sum(path, whole) for path in sorted(files)}
    write_record(root / FILE, {"name": name, "whole": whole, "files": found}, indent=None)


def check_files(directory: AnyPath, advice: str, name: str = "", closed: Iterable[str] = ()) -> str:
    """Compares the files that checksums.json lists with it; a directory without a list is taken as it is.

    Args:
      directory: local or in a bucket.
      advice: what to do about a damaged one, as half a sentence.
      name: as for `list_files`.
      closed: folders below it that hold listed files alone, hidden ones aside: another would be read too.

    Returns:
      The list's `identity`.

    Raises:
      Damaged: one of them, or the list, is damaged or lost, or belongs to another directory.
    """
    root = as_path(directory)
    try:
        listing = read_record(root / FILE, Listing, advice)
    except FileNotFoundError:
        return ""
    if listing["name"] != name:
        raise Damaged(f"{root} was written as {listing['name']!r}, not {name!r}; {advice}")
    for folder in closed:
        found = {str(path.relative_to(root)) for path in files_below(root / folder)}
        if more := sorted(file for file in found - listing["files"].keys() if "/." not in file):
            raise Damaged(
                f"{root / more[0]} is not one of the files that were written; delete it, or {advice}"
            )
    for file, (size, total) in listing["files"].items():
        path = root / file
        if is_pipe(path):
            raise Damaged(f"{path} is a pipe and no file; {advice}")
        try:
            has = _sum(path, listing["whole"])
        except OSError as error:
            raise Damaged(f"{path} cannot be read ({error.strerror or error}); {advice}") from None
        if has[0] != size:
            raise Damaged(f"{path} has {has[0]} bytes, not {size}; {advice}")
        if has != (size, total):
            raise Damaged(f"{path} is damaged: it does not have the checksum of {FILE}; {advice}")
    return _identity(listing)


def identity(directory: AnyPath) -> str:
    """What tells a directory's list from any other; empty if it has none.

    Raises:
      Damaged: the list cannot be read.
    """
    try:
        return _identity(read_record(as_path(directory) / FILE, Listing, "restore it"))
    except FileNotFoundError:
        return ""


def _identity(listing: Listing) -> str:
    return str(sealed(listing)[CRC32])


def _sum(path: Path, whole: int) -> tuple[int, int]:
    if is_remote(path) and (size := path.stat().length) > whole:  # type: ignore[attr-defined]
        return size, 0
    return spread(path, whole)
