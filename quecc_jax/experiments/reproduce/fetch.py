"""Files of others: fetched, resumed, checked, unpacked. What is not whole has another name than what is."""

import contextlib
import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO

from quecc_jax.errors import UserError
from quecc_jax.experiments.reproduce.downloads import Download, Remote
from quecc_jax.paths import crc32, replacing, sync
from quecc_jax.progress import byte_bar

BLOCK = 1 << 20
TIMEOUT_S = 60.0
"""Of a connection on which nothing comes."""
Show = Callable[[int], None]
"""Told how many more bytes are done."""


def place(remote: Remote, root: Path) -> Path:
    """Where a file lies once it is here."""
    return root / remote.path


def partial(path: Path) -> Path:
    """Where a file lies while it is not whole."""
    return path.with_name(f"{path.name}.part")


def address(download: Download, remote: Remote, mirror: str) -> str:
    """Where a file is fetched from: its own address, or MIRROR/DOWNLOAD/FILE; "" where a person has to."""
    return f"{mirror.rstrip('/')}/{download.name}/{Path(remote.path).name}" if mirror else remote.address


def fetch(remote: Remote, where: str, root: Path) -> str:
    """Brings a file to its place, going on where a fetch was stopped; returns its SHA-256.

    Args:
      where: as `address` says; a folder of this machine is copied from.

    Raises:
      UserError: it cannot be had, ends early, or is not the file that was published, which is then deleted.
    """
    path = place(remote, root)
    part = partial(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    before = -1
    while True:
        try:
            _fetch_http(where, part) if "://" in where else shutil.copyfile(where, part)
            break
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            have = part.stat().st_size if part.exists() else 0
            if isinstance(error, http.client.HTTPException) and have > max(before, 0):
                # The connection was lost on the way: as long as each brings something, there is another.
                before = have
                continue
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise UserError(
                f"{where} could not be fetched ({why}); the same command goes on with what is in {part}, or put the "
                f"file there yourself as {path}"
            ) from None
    try:
        found = checked(remote, part, path)
    except UserError:
        part.unlink()
        raise
    sync(part)
    os.replace(part, path)
    sync(path.parent)
    return found


def _fetch_http(where: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(where, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # Nothing lies behind what is here: it is whole, or too long, which its checksum or size shows.
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
            part.unlink()
            _fetch_http(where, part)
        return
    with reply:
        goes_on = reply.status == 206
        left = reply.headers.get("Content-Length")
        have = have if goes_on else 0
        total = have + int(left) if left is not None else 0
        with (
            part.open("ab" if goes_on else "wb") as file,
            byte_bar(f"fetching {part.stem}", total or 1) as show,
        ):
            while block := reply.read(BLOCK):
                file.write(block)
                show(len(block))
    if total and part.stat().st_size != total:
        raise http.client.HTTPException(
            f"the connection ended after {part.stat().st_size:,} of {total:,} bytes"
        )


def sha256(path: Path, show: Show = lambda count: None) -> str:
    """The SHA-256 of a file."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            total.update(block)
            show(len(block))
    return total.hexdigest()


def checked(remote: Remote, path: Path, name: Path) -> str:
    """The SHA-256 of a file that is what was published, as far as that is known.

    Args:
      name: what it is called in messages.

    Raises:
      UserError: it has another size or checksum.
    """
    size = path.stat().st_size
    if remote.bytes and size != remote.bytes:
        raise UserError(
            f"{name} has {size:,} bytes, not the {remote.bytes:,} that {remote.source} states; fetch it again"
        )
    with byte_bar(f"checking {name.name}", size) as show:
        found = sha256(path, show)
    if remote.sha256 and found != remote.sha256:
        raise UserError(
            f"{name} has the SHA-256 {found}, not {remote.sha256}, which {remote.source} states; fetch it again"
        )
    return found


def unpack(remote: Remote, root: Path) -> int:
    """Unpacks an archive into its folder, whose files that are whole stay; returns how many members it has.

    Raises:
      UserError: it is no ZIP archive, is damaged, or has members that lie outside the folder.
    """
    archive, folder = place(remote, root), root / remote.into
    try:
        with zipfile.ZipFile(archive) as packed:
            members = [one for one in packed.infolist() if not one.is_dir() and _wanted(remote, one.filename)]
            with byte_bar(f"unpacking {archive.name}", sum(one.file_size for one in members) or 1) as show:
                for one in members:
                    target = folder / _inside(one.filename.removeprefix(remote.strip), archive)
                    if not _is(target, one):
                        with replacing(target, durable=False) as aside, packed.open(one) as source:
                            _write(source, aside)
                    show(one.file_size)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); fetch it again") from None
    # Once for all: each by itself would take hours for half a million images.
    os.sync()
    return len(members)


def _write(source: IO[bytes], path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(source, file, BLOCK)


def _is(path: Path, member: zipfile.ZipInfo) -> bool:
    """Whether a file is that member of an archive, byte by byte."""
    return path.is_file() and path.stat().st_size == member.file_size and crc32(path) == member.CRC


def _wanted(remote: Remote, name: str) -> bool:
    return name == remote.only if remote.only else name.startswith(remote.strip)


def _inside(name: str, archive: Path) -> Path:
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or PurePosixPath(name).is_absolute():
        raise UserError(f"{archive} has a member {name!r}, which lies outside of its folder; do not trust it")
    return Path(*parts)


def link(root: Path, second: str, first: str) -> None:
    """Shows a folder in a second place, unless something is there.

    Raises:
      UserError: the file system has no links.
    """
    target = root / second
    if os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = os.path.relpath(root / first, target.parent)
    try:
        target.symlink_to(shown, target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be linked to {first} ({error.strerror}); copy that folder there"
        ) from None


def missing(root: Path, paths: tuple[str, ...]) -> list[str]:
    """Those of some files and folders (with a slash behind, and something in them) that are not there."""
    lost = []
    for one in paths:
        path = root / one
        there = path.is_file()
        if one.endswith("/"):
            with contextlib.suppress(OSError):
                there = next(path.iterdir(), None) is not None
        if not there:
            lost.append(one)
    return lost
