"""What the tests replace of the private parts of orbax and etils; `tests/train/test_orbax_shim.py` watches them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from etils.epath import backend
from orbax.checkpoint._src.path import gcs_utils

BUCKETS = {
    "get_kvstore_for_gcs": gcs_utils,
    "is_hierarchical_namespace_enabled": gcs_utils,
    "_get_filesystem": backend.fsspec_backend,
}
"""What is called for a path in a bucket, and where it is."""


@contextmanager
def replaced_store(kvstore: Callable[[str], dict[str, Any]]) -> Iterator[None]:
    """Orbax opens what `kvstore` says for a path in a bucket; fsspec's registered file system is looked up anew."""
    backend.fsspec_backend._get_filesystem.cache_clear()
    with (
        mock.patch.object(gcs_utils, "get_kvstore_for_gcs", kvstore),
        mock.patch.object(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False),
    ):
        yield
    backend.fsspec_backend._get_filesystem.cache_clear()
