"""A bucket named `bucket` that is a directory, behind fsspec, orbax and TensorBoard as gs://bucket."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import fsspec
import tensorboardX.record_writer as writer
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

    class Factory:
        def open(self, path):
            file = local(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            return file.open("wb")

        def directory_check(self, path):
            pass

    def local(path) -> Path:
        return root / str(path).removeprefix("gs://")

    def kvstore(path):
        return {"driver": "file", "path": str(local(path))}

    (root / "bucket").mkdir(parents=True)
    fsspec.register_implementation("gcs", Buckets, clobber=True)
    with mock.patch.dict(writer.REGISTERED_FACTORIES, {"gs": Factory()}), replaced_store(kvstore):
        yield root / "bucket"
