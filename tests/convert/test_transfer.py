"""Tensors on their way into a checkpoint and out of it: types, and how many are in memory."""

import weakref
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from quecc_jax.convert.io.layer_store import SlabWriter
from quecc_jax.convert.io.writer import ShardWriter, Spec
from quecc_jax.convert.rules import Rule, Slab
from quecc_jax.convert.transfer import cast, drain, fill
from quecc_jax.errors import UserError

BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)


class Counting:
    """Random tensors that remember how many of their bytes were alive at once."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]):
        self.shapes, self.dtypes = shapes, dict.fromkeys(shapes, BF16)
        self.alive, self.peak = 0, 0

    def read(self, name: Any) -> np.ndarray:
        array = np.ones(self.shapes[name], BF16)
        self.alive += array.nbytes
        self.peak = max(self.peak, self.alive)
        weakref.finalize(array, self._gone, array.nbytes)
        return array

    def _gone(self, size: int) -> None:
        self.alive -= size

    def close(self) -> None: ...


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_numbers_too_large_for_half_precision_are_named(dtype: Any) -> None:
    fits = np.array([65504, -65504, np.inf, np.nan, 1e-9], np.float32)
    np.testing.assert_array_equal(cast(fits, F16, "w"), fits.astype(F16))
    with pytest.raises(UserError, match="w holds numbers too large for float16"):
        cast(np.array([1, 1e6]).astype(dtype), F16, "w")


def test_no_more_than_two_groups_of_tensors_are_ever_in_memory(tmp_path: Path) -> None:
    """Sixty-four layers of fused matrices. tensorstore lets go of the last group some moments late."""
    path, group = ("decoder", "layers", "q", "kernel"), 2 * 64 * 8 * 2
    rules = [
        Rule(
            (f"a{i}", f"b{i}"),
            ((64, 8),) * 2,
            (Slab(path, i, (2, 64, 8)),),
            lambda x: (np.stack(x),),
            lambda x: (x[0][0], x[0][1]),
        )
        for i in range(64)
    ]
    shapes = {name: shape for rule in rules for name, shape in zip(rule.theirs, rule.shapes, strict=True)}
    source = Counting(shapes)
    with SlabWriter(tmp_path / "0", rules, {path: BF16}) as writer:
        fill(writer, rules, source, {path: BF16}, lambda size: None)
    assert group <= source.peak <= 2 * group and source.alive == 0

    slabs: Any = Counting({slab: slab.shape for rule in rules for slab in rule.ours})  # type: ignore[misc]
    specs = {name: Spec(shape, BF16) for name, shape in shapes.items()}
    with ShardWriter(tmp_path, specs, 10**9) as shards:
        drain(slabs, rules, specs, shards, lambda size: None)
    assert slabs.peak == group and slabs.alive == 0
