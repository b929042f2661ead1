"""A file system of a few hundred kilobytes, to be filled."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """Yields the root of an empty one, mounted on a new folder; skips the test where no way to mount is allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield folder
        finally:
            # Lazily: a failed run's files may still be open.
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    # In a name space of its own, which lasts as long as its process and is seen through that.
    inside = subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", f"{' '.join(mount)} && echo && exec sleep 600"], stdout=-1
    )
    with inside:
        try:
            if inside.stdout is None or inside.stdout.readline() != b"\n":
                pytest.skip("neither mount nor unshare -Urm is allowed here")
            yield Path(f"/proc/{inside.pid}/root{folder}")
        finally:
            inside.kill()


def fill(disk: Path, leave: int = 0) -> Path:
    """Leaves that many kilobytes free; returns the file that takes the room."""
    ballast = disk / f"ballast-{time.monotonic_ns()}"
    with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
        file.truncate(file.tell() - 1024 * leave)
    return ballast
