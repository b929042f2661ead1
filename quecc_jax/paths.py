"""Paths that may lie in a bucket: gs://BUCKET/PLACE works where a directory of this machine does.

Buckets need the packages of the `gcs` extra. An object appears in a bucket whole or not at all, but there
are neither directories nor renames: what is atomic here by a rename is there by a single upload.
"""

import contextlib
import glob
import hashlib
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from etils import epath

AnyPath = str | os.PathLike[str]

UPLOAD_S = 30.0
"""Seconds between two uploads of a file that grows."""


def is_remote(path: AnyPath) -> bool:
    """Whether a path lies in a bucket."""
    return "://" in os.fspath(path)


def as_path(path: AnyPath) -> Path:
    """An absolute path of this machine without `..`, or one in a bucket with the methods of such a path."""
    if is_remote(path):
        return cast(Path, epath.Path(path))
    local = Path(path).absolute()
    # Tensorstore takes no `..`; links keep their names elsewhere.
    return local.resolve() if ".." in local.parts else local


def write_text(path: AnyPath, text: str, durable: bool = True) -> None:
    """Writes a file; a reader sees the old one or the new one, never a part.

    Args:
      durable: as in `replacing`.
    """
    target = as_path(path)
    if is_remote(path):
        target.write_text(text)
        return
    with replacing(target, durable) as aside:
        aside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(target: Path, durable: bool = True) -> Iterator[Path]:
    """Yields a file to write beside `target`, of this machine, which takes its name when the block succeeds.

    Processes may write the same file at once: a reader sees the whole file of one of them.

    Args:
      durable: the file is on the disk before it has its name, so that it is whole after a loss of power too; not
        worth its time for what is shown for a moment.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield aside
        if durable:
            sync(aside)
        os.replace(aside, target)
        if durable:
            sync(target.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a directory's names, are on the disk; both of this machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path) -> None:
    """As `sync`, of a directory and of all that it holds."""
    for folder, _, names in os.walk(directory):
        for path in (*(Path(folder, name) for name in names), Path(folder)):
            if path.is_file() or path.is_dir():
                sync(path)


def is_pipe(path: AnyPath) -> bool:
    """Whether it is a pipe or a socket of this machine, for which a reader may wait without end."""
    try:
        mode = 0 if is_remote(path) else os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def files_below(directory: AnyPath) -> list[Path]:
    """The files of a directory at any depth, sorted; none where it is missing."""
    folder = as_path(directory)
    if not folder.is_dir():
        return []
    # No `rglob`: buckets have none.
    return sorted(
        file for path in folder.iterdir() for file in (files_below(path) if path.is_dir() else [path])
    )


def copy_files(source: AnyPath, target: AnyPath, without: Iterable[str] = ()) -> None:
    """Copies a directory's own files into another; what lies deeper stays.

    Args:
      source: the directory.
      target: made where it is missing.
      without: endings of files that stay, as ".bin".

    Raises:
      OSError: the directory is missing, or a file cannot be read or written.
    """
    files = [f for f in epath.Path(source).iterdir() if f.suffix not in without and not f.is_dir()]
    epath.Path(target).mkdir(parents=True, exist_ok=True)
    for file in files:
        file.copy(epath.Path(target) / file.name, overwrite=True)


def remove(directory: AnyPath) -> None:
    """Deletes a directory with all that it holds, if it is there."""
    if is_remote(directory):
        epath.Path(directory).rmtree(missing_ok=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/quecc_jax, or ~/.cache/quecc_jax without that variable."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "quecc_jax"


def cached(path: AnyPath, key: str = "") -> Path:
    """A bucket's file on this machine: copied into `cache_folder` when it is first asked for, and kept.

    Several processes may ask at once; each sees the whole file. The copy's name holds its CRC-32: one that has become
    damaged is copied again.

    Args:
      path: in a bucket; a file of this machine is returned as it is.
      key: names the content, as a checksum does, and spares reading the copy, which the caller then compares; by
        default the bucket's own size and time of change.

    Raises:
      OSError: the file is missing, or cannot be read or copied.
    """
    if not is_remote(path):
        return Path(path)
    remote = epath.Path(path)
    stamp = key
    if not key:
        stat = remote.stat()
        stamp = f"{stat.length} {stat.mtime}"
    name = hashlib.sha256(f"{os.fspath(path)} {stamp}".encode()).hexdigest()[:20]
    for found in cache_folder().glob(f"{name}-????????-{glob.escape(remote.name)}"):
        if key or f"{crc32(found):08x}" == found.name.split("-")[1]:
            return found
        found.unlink(missing_ok=True)
    cache_folder().mkdir(parents=True, exist_ok=True)
    aside = cache_folder() / f".{name}.{os.getpid()}"
    try:
        remote.copy(aside, overwrite=True)
        target = cache_folder() / f"{name}-{crc32(aside):08x}-{remote.name}"
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)
    return target


def crc32(path: Path) -> int:
    """The CRC-32 of a file.

    Raises:
      OSError: it cannot be read.
    """
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total = zlib.crc32(block, total)
    return total


@contextlib.contextmanager
def local_copy(directory: AnyPath) -> Iterator[Path]:
    """A directory for libraries that read this machine's files alone.

    Yields:
      The directory itself, or a temporary copy of a bucket's, without what lies deeper.
    """
    if not is_remote(directory):
        yield Path(directory)
        return
    with tempfile.TemporaryDirectory() as made:
        copy_files(directory, made)
        yield Path(made)


@contextlib.contextmanager
def local_output(directory: AnyPath) -> Iterator[Path]:
    """A directory for libraries that write this machine's files alone.

    Yields:
      The directory itself, or an empty one whose files, at any depth, are in the bucket afterwards.
    """
    if not is_remote(directory):
        yield Path(directory)
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)
        for file in Path(made).rglob("*"):
            if file.is_file():
                epath.Path(file).copy(epath.Path(directory) / file.relative_to(made), overwrite=True)


class Lines:
    """A text file that grows by lines, written anew with what it should begin with. A context.

    On this machine a line is in the file when `add` returns, in a bucket within UPLOAD_S and at the end.
    """

    def __init__(self, path: AnyPath, kept: Iterable[str]):
        text = "".join(line + "\n" for line in kept)
        write_text(path, text)
        self._path = as_path(path)
        self._file: IO[str] | None = None if is_remote(path) else self._path.open("a")
        self._text, self._uploaded = [text], time.monotonic()

    def add(self, line: str) -> None:
        """Appends one line."""
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
            return
        self._text.append(line + "\n")
        if time.monotonic() - self._uploaded > UPLOAD_S:
            self._upload()

    def _upload(self) -> None:
        self._path.write_text("".join(self._text))
        self._uploaded = time.monotonic()

    def close(self) -> None:
        """Writes what is left."""
        if self._file is not None:
            self._file.close()
        else:
            self._upload()
