"""Where orbax keeps what `quecc_jax.train.orbax_shim` and `tests.orbax_shim` reach for."""

import fnmatch
import os

import numpy as np
import pytest
import tensorstore
from orbax.checkpoint import v1 as ocp

from quecc_jax.train.orbax_shim import UNFINISHED, saving


def watched(move, seen):
    """A function that renames, which notes the names of what it is given."""

    def noting(source, target, **more):
        seen.append(os.path.basename(source))
        return move(source, target, **more)

    return noting


def test_what_is_being_written_has_the_name_that_is_cleared_away(tmp_path, monkeypatch):
    seen: list[str] = []
    for call in ("rename", "replace"):
        monkeypatch.setattr(os, call, watched(getattr(os, call), seen))
    ocp.save(tmp_path / "frozen", {"a": np.zeros(3)})
    assert any(fnmatch.fnmatch(name, f"frozen{UNFINISHED}") for name in seen), (
        f"orbax names what it has begun {seen}, no longer frozen{UNFINISHED}: change UNFINISHED in "
        "quecc_jax/train/orbax_shim.py, or what a killed process leaves behind stays"
    )


def test_every_chunk_has_a_checksum_however_often_a_process_saves(tmp_path):
    for name in ("one", "two"):
        with saving():
            ocp.save(tmp_path / name, {"layers": np.zeros((2, 3))})
        store = {"driver": "ocdbt", "base": f"file://{tmp_path}/{name}/state/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": store, "path": "layers/"}).result()
        (shards,) = array.spec().to_json(include_defaults=False)["metadata"]["codecs"]
        codecs = [codec["name"] for codec in shards["configuration"]["codecs"]]
        assert codecs == ["bytes", "crc32c"], (
            f"orbax stores chunks as {codecs}: change _check_chunks in quecc_jax/train/orbax_shim.py, or a flipped "
            "bit is restored as it is"
        )


def test_a_bucket_s_store_can_be_replaced():
    try:
        from tests.orbax_shim import BUCKETS
    except ImportError as error:
        pytest.fail(
            f"orbax has moved what it calls for buckets ({error}): find where it makes the "
            "store of a gs:// path now, and change tests/orbax_shim.py"
        )
    missing = [name for name in BUCKETS if not callable(getattr(BUCKETS[name], name, None))]
    assert not missing, f"orbax no longer has {missing}: change tests/orbax_shim.py"
