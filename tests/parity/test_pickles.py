"""Pickled checkpoints: what torch saved is read bit for bit, and a bare projector goes back to torch."""

import io
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from quecc_jax.convert.io import tensors
from quecc_jax.convert.io.pickles import pickled
from quecc_jax.convert.io.tensors import open_tensors
from quecc_jax.convert.run import export_weights, import_weights
from quecc_jax.errors import UserError
from tests.convert.test_run import assert_same_tensors, small, write_checkpoint, write_tiny


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("mapped", [0, tensors.MAPPED])
def test_shards_of_torch_save_are_read_bit_for_bit(
    tmp_path: Path, mapped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(tensors, "MAPPED", mapped)
    wide = torch.randn(6, 8)
    parts = {
        "pytorch_model-1.bin": {"a": wide.bfloat16(), "b": wide.half().T, "c": torch.tensor(2.5).bfloat16()},
        "pytorch_model-2.bin": {"d": wide[2:4, ::2], "e": torch.arange(5), "f": torch.zeros(0, 3)},
    }
    for file, part in parts.items():
        torch.save(part, tmp_path / file)
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for _ in range(2):  # with an index and without
        source = open_tensors(tmp_path, allow_pickle=True)
        for name, tensor in {k: v for part in parts.values() for k, v in part.items()}.items():
            got = source.read(name)
            assert got.shape == tuple(tensor.shape) == source.shapes[name]
            assert got.dtype == source.dtypes[name] and f"torch.{got.dtype}" == str(tensor.dtype)
            assert got.tobytes() == bits(tensor)
        (tmp_path / "pytorch_model.bin.index.json").unlink(missing_ok=True)
    assert source.dtypes["a"] == ml_dtypes.bfloat16


def test_pickles_that_carry_code_or_no_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a": np.poly1d([1])}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read by torch's weights-only loader"):
        open_tensors(tmp_path, allow_pickle=True)
    torch.save({"step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is not a dict of named tensors"):
        open_tensors(tmp_path, allow_pickle=True)
    torch.save({"a": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="stores a as complex64"):
        open_tensors(tmp_path, allow_pickle=True)


def test_a_truncated_pickle_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(200)}, tmp_path / "pytorch_model.bin")
    whole = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read"):
        open_tensors(tmp_path, allow_pickle=True)


def test_a_stage_1_projector_goes_there_and_back(tmp_path: Path) -> None:
    """mm_projector.bin with the config.json that training wrote beside it, and the tower's directory."""
    tiny, given = small("llava_tiny"), tmp_path / "given"
    write_tiny(tmp_path / "whole")
    given.mkdir()
    state = {k: torch.randn(v).bfloat16() for k, v in tiny["tensors"].items() if "mm_projector" in k}
    torch.save(state, given / "mm_projector.bin")
    (given / "config.json").write_text(json.dumps(tiny["config"]))
    tower = tmp_path / "whole" / "clip_tiny"
    import_weights(given, tmp_path / "run", vision=tower, allow_pickle=True)
    export_weights(tmp_path / "run", tmp_path / "out")
    back = torch.load(tmp_path / "out" / "mm_projector.bin", weights_only=True)
    assert back.keys() == state.keys()
    assert all(v.dtype == torch.bfloat16 and bits(v) == bits(state[k]) for k, v in back.items())
    held = open_tensors(tmp_path / "out" / "mm_projector.safetensors")
    assert all(held.read(k).tobytes() == bits(v) for k, v in state.items())


def test_a_pickled_model_is_exported_as_safetensors_of_the_same_tensors(tmp_path: Path) -> None:
    tiny = small("llava_tiny")
    write_checkpoint(tmp_path / "given", tiny["config"], tiny["tensors"], np.float16)
    source = open_tensors(tmp_path / "given")
    state = {k: torch.from_numpy(source.read(k)) for k in source.shapes}
    for file in (tmp_path / "given").glob("model*"):
        file.unlink()
    torch.save(state, tmp_path / "given" / "pytorch_model.bin")
    write_tiny(tmp_path / "safe")
    for name, pickle in (("given", True), ("safe", False)):
        tower = tmp_path / "safe" / "clip_tiny"
        import_weights(tmp_path / name, tmp_path / f"run-{name}", vision=tower, allow_pickle=pickle)
        export_weights(tmp_path / f"run-{name}", tmp_path / f"out-{name}")
    assert_same_tensors(tmp_path / "out-given", tmp_path / "out-safe")
    with pytest.raises(UserError, match="is a pickle"):
        import_weights(tmp_path / "given", tmp_path / "again")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (0, 4), ()])
def test_one_tensor_is_read_by_the_weights_only_loader_bit_for_bit(
    dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    for given in (array, array.T):
        back = torch.load(io.BytesIO(pickled(given)), weights_only=True)
        assert tuple(back.shape) == given.shape and f"torch.{given.dtype}" == str(back.dtype)
        assert bits(back) == np.ascontiguousarray(given).tobytes() and back.is_contiguous()
