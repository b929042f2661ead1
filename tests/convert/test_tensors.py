"""Lazy tensor sources against files written by the safetensors package, and against broken files."""

import json
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from quecc_jax.convert.io.tensors import DTYPES, open_tensors
from quecc_jax.convert.io.weight_files import OTHER_FORM, PROJECTOR_ALONE, REST, TRAINING, choose
from quecc_jax.errors import UserError


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """One tensor of random bits for every dtype, with a scalar, an empty one, and NaNs among them."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, dtype in DTYPES.items():
        bits = rng.integers(0, 2 if name == "BOOL" else 256, (3, 5 * dtype.itemsize), np.uint8)
        found[f"x.{name}"] = bits.view(dtype)
    found["scalar"] = np.array(1.5, ml_dtypes.bfloat16)
    found["empty"] = np.zeros((0, 4), np.float32)
    return found


def same_bits(got: np.ndarray, want: np.ndarray) -> bool:
    return got.dtype == want.dtype and got.shape == want.shape and got.tobytes() == want.tobytes()


def write(directory: Path, parts: dict[str, dict[str, np.ndarray]], index: bool = True) -> None:
    """Shards as the safetensors package writes them, and their index."""
    for file, part in parts.items():
        save_file(part, directory / file)
    if index:
        weight_map = {name: file for file, part in parts.items() for name in part}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_every_dtype_is_read_bit_for_bit(tmp_path: Path) -> None:
    want = tensors()
    save_file(want, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        source = open_tensors(path)
        assert source.shapes == {k: v.shape for k, v in want.items()}
        assert source.dtypes == {k: v.dtype for k, v in want.items()}
        assert all(same_bits(source.read(k), v) for k, v in want.items())
        source.close()


def test_index_joins_shards_and_hides_other_files(tmp_path: Path) -> None:
    one, two = tensors(1), {f"y.{k}": v for k, v in tensors(2).items()}
    write(tmp_path, {"model-1.safetensors": one, "model-2.safetensors": two})
    save_file(one, tmp_path / "consolidated.safetensors")
    source = open_tensors(tmp_path)
    assert all(same_bits(source.read(k), v) for k, v in {**one, **two}.items())
    assert source.shapes.keys() == one.keys() | two.keys()


def test_a_result_is_writable_and_apart_from_the_file(tmp_path: Path) -> None:
    save_file({"a": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    source = open_tensors(tmp_path)
    source.read("a")[:] = 1
    assert not source.read("a").any()


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist"):
        open_tensors(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no .safetensors or .bin"):
        open_tensors(tmp_path)
    write(tmp_path, {"m1.safetensors": tensors()})
    (tmp_path / "m1.safetensors").rename(tmp_path / "m2.safetensors")
    with pytest.raises(UserError, match=r"names m1.safetensors, which is not there"):
        open_tensors(tmp_path)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    write(tmp_path, {"m1.safetensors": {"a": np.zeros(2)}, "m2.safetensors": {"b": np.zeros(2)}})
    save_file({"a": np.zeros(2), "c": np.zeros(2)}, tmp_path / "m1.safetensors")
    with pytest.raises(UserError, match=r"m1.safetensors holds c, which .* does not list"):
        open_tensors(tmp_path)
    save_file({"c": np.zeros(2)}, tmp_path / "m1.safetensors")
    with pytest.raises(UserError, match=r"expects a in m1.safetensors, which lacks it"):
        open_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="no weight_map"):
        open_tensors(tmp_path)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    parts = {"m1.safetensors": {"a": np.zeros(2)}, "m2.safetensors": {"a": np.zeros(2)}}
    write(tmp_path, parts, index=False)
    with pytest.raises(UserError, match=r"a is in m1.safetensors and again in .*m2.safetensors"):
        open_tensors(tmp_path)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": np.arange(8.0), "b": np.arange(3.0)}, file)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model.safetensors"):
            open_tensors(tmp_path)
    file.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="not fully covered"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "header, message",
    [
        ('{"a": %s, "a": %s}', "holds 'a' twice"),
        ('{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}', "a as F8_E4M3"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "invalid shape"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "invalid offset for tensor `a`"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', "damaged"),
        (
            '{"b": %s, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
            "invalid offset for tensor",
        ),
        ('{"a": 3}', "damaged"),
        ("[]", "damaged"),
        ("{no}", "damaged"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: str, message: str) -> None:
    text = header.replace("%s", '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}').encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(UserError, match=f"m.safetensors.*{message}"):
        open_tensors(tmp_path)


def test_pickles_are_refused_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle.*--allow-pickle"):
        open_tensors(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="torch is not installed"):
        open_tensors(tmp_path, allow_pickle=True)


def test_a_model_goes_before_its_projector_and_other_forms_before_neither(tmp_path):
    for name in ("mm_projector.safetensors", "pytorch_model.bin", "tf_model.h5", "optimizer.pt"):
        (tmp_path / name).touch()
    chosen = choose(tmp_path)
    assert [file.name for file in chosen.files] == ["pytorch_model.bin"]
    assert dict(chosen.unread) == {
        "mm_projector.safetensors": PROJECTOR_ALONE,
        "optimizer.pt": TRAINING,
        "tf_model.h5": OTHER_FORM,
    }
    projector = choose(tmp_path, projector=True)
    assert [file.name for file in projector.files] == ["mm_projector.safetensors"]
    assert projector.unread["pytorch_model.bin"] == REST
    (tmp_path / "model.safetensors").touch()
    assert choose(tmp_path).unread["pytorch_model.bin"] == OTHER_FORM
    (tmp_path / "more.safetensors").touch()
    with pytest.raises(UserError, match=r"holds more\.safetensors beside model\.safetensors"):
        choose(tmp_path)
