"""A bucket named `bucket` that is a directory, behind fsspec and orbax as gs://bucket."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from tests.orbax_shim import replaced_store


@contextmanager
def pretended_bucket(root: Path) -> Iterator[Path]:
    """Yields the directory that stands for gs://bucket."""

    class Buckets(DirFileSystem):
        protocol = ("gcs", "gs")
        cachable = False

        def __init__(self, **_):
            super().__init__(path=str(root), fs=LocalFileSystem(auto_mkdir=True))

    def local(path) -> Path:
        return root / str(path).removeprefix("gs://")

    def kvstore(path):
        return {"driver": "file", "path": str(local(path))}

    (root / "bucket").mkdir(parents=True)
    fsspec.register_implementation("gcs", Buckets, clobber=True)
    with replaced_store(kvstore):
        yield root / "bucket"
