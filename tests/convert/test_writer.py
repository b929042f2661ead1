"""Shards written tensor by tensor, read back by the safetensors package."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from quecc_jax.convert.io.tensors import DTYPES, open_tensors
from quecc_jax.convert.io.writer import ShardWriter, Spec
from quecc_jax.errors import UserError
from tests.convert.test_tensors import same_bits, tensors


def specs(arrays: dict[str, np.ndarray]) -> dict[str, Spec]:
    return {name: Spec(a.shape, a.dtype) for name, a in arrays.items()}


def write_all(directory: Path, arrays: dict[str, np.ndarray], shard_bytes: int, order: list[str]) -> None:
    with ShardWriter(directory, specs(arrays), shard_bytes) as writer:
        for name in order:
            writer.write(name, arrays[name])


@settings(max_examples=25, deadline=None)
@given(data=st.data(), shard=st.sampled_from([1, 70, 200, 10**9]))
def test_files_hold_what_was_written_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, shard: int
) -> None:
    directory, want = tmp_path_factory.mktemp("shards"), tensors(3)
    write_all(directory, want, shard, data.draw(st.permutations(sorted(want))))
    files = sorted(directory.glob("*.safetensors"))
    found = {name: array for file in files for name, array in load_file(file).items()}
    assert found.keys() == want.keys()
    assert all(same_bits(found[k], v) for k, v in want.items())
    assert open_tensors(directory).shapes.keys() == want.keys()
    for file in files:
        held = sum(a.nbytes for a in load_file(file).values())
        assert held <= shard or len([a for a in load_file(file).values() if a.nbytes]) <= 1


def test_names_of_shards_and_index(tmp_path: Path) -> None:
    arrays = {name: np.zeros(4, np.float32) for name in "abc"}
    write_all(tmp_path, arrays, 32, list("abc"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert index == {"metadata": {"total_size": 48}, "weight_map": {"a": first, "b": first, "c": second}}
    assert {p.name for p in tmp_path.iterdir()} == {first, second, "model.safetensors.index.json"}


def test_one_shard_has_no_index(tmp_path: Path) -> None:
    write_all(tmp_path, {"a": np.arange(4)}, 10**9, ["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_strided_and_transposed_arrays(tmp_path: Path) -> None:
    big = np.arange(24, dtype=np.float32).reshape(4, 6)
    wide = np.arange(70 * 130).reshape(70, 130)
    arrays: dict[str, np.ndarray] = {
        "t": big.T,
        "s": big[::2, 1:],
        "w": wide.T,
        "b": wide.reshape(7, 10, 130).transpose(2, 0, 1),
    }
    write_all(tmp_path, arrays, 10**9, list(arrays))
    found = load_file(tmp_path / "model.safetensors")
    assert all(np.array_equal(found[k], v) for k, v in arrays.items())


def test_wrong_or_forgotten_tensors_are_defects(tmp_path: Path) -> None:
    form = {"a": Spec((2,), DTYPES["F32"])}
    with pytest.raises(ValueError, match="not written, a among"), ShardWriter(tmp_path, form, 10):
        pass
    (tmp_path / "again").mkdir()
    with ShardWriter(tmp_path / "again", form, 10) as writer:
        for bad in (np.zeros(2), np.zeros(3, np.float32)):
            with pytest.raises(ValueError, match="came for"):
                writer.write("a", bad)
        writer.write("a", np.zeros(2, np.float32))
        with pytest.raises(ValueError, match="came twice"):
            writer.write("a", np.zeros(2, np.float32))


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"model.safetensors cannot be written \(No space left on device\)"):  # noqa: SIM117
        with ShardWriter(tmp_path, {"a": Spec((2,), DTYPES["F32"])}, 10) as writer:
            monkeypatch.setattr(os, "pwrite", full)
            writer.write("a", np.zeros(2, np.float32))


def test_partial_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: whole(file, data[:7], at))
    want = tensors(4)
    write_all(tmp_path, want, 100, list(want))
    monkeypatch.undo()
    source = open_tensors(tmp_path)
    assert all(same_bits(source.read(k), v) for k, v in want.items())
