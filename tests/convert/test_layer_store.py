"""Checkpoints written slab by slab, read by the functions that training uses, and the other way round."""

from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.config.io import save_config
from quecc_jax.convert.io import layer_store
from quecc_jax.convert.io.layer_store import SlabReader, SlabWriter
from quecc_jax.convert.rules import Rule, Slab
from quecc_jax.errors import UserError
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import load_params, named_leaves, save_params

BF16 = np.dtype(ml_dtypes.bfloat16)
LAYERS, SHAPE = 3, (8, 6)


def rules() -> list[Rule]:
    """A stack of three layers in two groups, and two whole leaves."""
    kernel, bias = ("decoder", "layers", "q", "kernel"), ("decoder", "layers", "q", "bias")
    groups: list[tuple[Slab, ...]] = [
        *((Slab(kernel, i, SHAPE), Slab(bias, i, (6,))) for i in range(LAYERS)),
        (Slab(("decoder", "embedding"), None, (16, 8)),),
        (Slab(("projector", "scale"), None, ()),),
    ]
    return [
        Rule(tuple(map(str, g)), tuple(s.shape for s in g), g, lambda theirs: theirs, lambda ours: ours)
        for g in groups
    ]


def random_slabs(dtype: np.dtype) -> dict[Slab, np.ndarray]:
    rng = np.random.default_rng(0)
    return {s: np.asarray(rng.normal(size=s.shape)).astype(dtype) for r in rules() for s in r.ours}


def tree_of(arrays: dict[Slab, np.ndarray]) -> dict[str, Any]:
    def stack(leaf: str) -> np.ndarray:
        return np.stack([a for s, a in arrays.items() if s.path[-1] == leaf])

    (embedding,) = (a for s, a in arrays.items() if s.path[-1] == "embedding")
    (scale,) = (a for s, a in arrays.items() if s.path[-1] == "scale")
    q = {"kernel": stack("kernel"), "bias": stack("bias")}
    return {"decoder": {"layers": {"q": q}, "embedding": embedding}, "projector": {"scale": scale}}


def write_run(run: Path, arrays: dict[Slab, np.ndarray], dtype: np.dtype) -> None:
    with SlabWriter(run / "checkpoints" / "0", rules(), {s.path: dtype for s in arrays}) as writer:
        for slab in reversed(arrays):
            writer.write(slab, arrays[slab])
    save_config(RunConfig(out=str(run)), run / "config.json")


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16), np.dtype(np.float32)])
def test_training_reads_what_was_written_bit_for_bit(tmp_path: Path, dtype: np.dtype) -> None:
    arrays = random_slabs(dtype)
    write_run(tmp_path, arrays, dtype)
    _, params = load_params(tmp_path)
    want = tree_of(arrays)
    assert named_leaves(params).keys() == named_leaves(want).keys()
    for got, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
        assert (got.dtype, got.shape, got.tobytes()) == (leaf.dtype, leaf.shape, leaf.tobytes())


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_half_precision_becomes_float32_on_any_mesh(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    arrays = random_slabs(BF16)
    write_run(tmp_path, arrays, BF16)
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
    specs = {2: PartitionSpec("fsdp", "tensor"), 3: PartitionSpec(None, "fsdp", "tensor")}

    def abstract(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
        spec = specs.get(leaf.ndim if leaf.shape != (LAYERS, 6) else 0, PartitionSpec())
        return jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=NamedSharding(mesh, spec))

    want = tree_of(arrays)
    _, params = load_params(tmp_path, abstract=jax.tree.map(abstract, want))
    for got, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, leaf.astype(np.float32))


def test_other_types_are_not_widened(tmp_path: Path) -> None:
    write_run(tmp_path, random_slabs(np.dtype(np.float64)), np.dtype(np.float64))
    want = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), tree_of(random_slabs(BF16)))
    with pytest.raises(UserError, match=r"float64, expected .* float32"):
        load_params(tmp_path, abstract=want)


def test_a_layer_is_one_chunk_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_store, "CHUNK", 64)
    write_run(tmp_path, random_slabs(BF16), BF16)
    reader = SlabReader(tmp_path)
    chunks = {p[-1]: a.chunk_layout.read_chunk.shape for p, a in reader._arrays.items()}
    assert chunks["kernel"] == (1, 4, 6)
    assert chunks["embedding"] == (4, 8)
    assert chunks["bias"] == (1, 6)


def test_slabs_of_a_trained_run_come_from_its_frozen_and_trained_parts(tmp_path: Path) -> None:
    want = random_slabs(np.dtype(np.float32))
    tree = tree_of(want)
    save_params(RunConfig(out=str(tmp_path)), {"decoder": tree["decoder"]})
    ocp.save(tmp_path / "frozen", {"projector": tree["projector"]})
    parts = {"params": {"decoder": tree["decoder"]}, "optimizer": {"x": np.ones(2)}}
    ocp.save_checkpointables(tmp_path / "checkpoints" / "7", parts)
    reader = SlabReader(tmp_path)
    assert {s.path for s in want} == reader.shapes.keys()
    for slab, array in want.items():
        np.testing.assert_array_equal(reader.read(slab), array)


def test_layers_saved_by_training_lie_apart(tmp_path: Path) -> None:
    tree = tree_of(random_slabs(np.dtype(np.float32)))
    save_params(RunConfig(out=str(tmp_path)), jax.tree.map(jax.numpy.asarray, tree))
    chunks = {p[-1]: a.chunk_layout.read_chunk.shape for p, a in SlabReader(tmp_path)._arrays.items()}
    assert chunks["kernel"] == (1, *SHAPE)


def test_wrong_or_forgotten_slabs_are_defects(tmp_path: Path) -> None:
    arrays = random_slabs(BF16)
    dtypes = {s.path: BF16 for s in arrays}
    first = next(iter(arrays))
    with pytest.raises(ValueError, match="7 slabs were not written"):  # noqa: SIM117
        with SlabWriter(tmp_path / "0", rules(), dtypes) as writer:
            for bad in (arrays[first].astype(np.float32), arrays[first][:1]):
                with pytest.raises(ValueError, match="came as"):
                    writer.write(first, bad)
            writer.write(first, arrays[first])
            with pytest.raises(ValueError, match="came twice"):
                writer.write(first, arrays[first])


def test_a_damaged_or_missing_checkpoint_is_named(tmp_path: Path) -> None:
    save_config(RunConfig(out=str(tmp_path)), tmp_path / "config.json")
    with pytest.raises(UserError, match="holds no checkpoint"):
        SlabReader(tmp_path)
    write_run(tmp_path, random_slabs(BF16), BF16)
    (tmp_path / "checkpoints" / "0" / "params" / "manifest.ocdbt").write_bytes(b"no")
    with pytest.raises(UserError, match="cannot be read"):
        SlabReader(tmp_path)
