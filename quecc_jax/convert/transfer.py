"""Weights on their way between another project's tensors and a run's slabs, one rule at a time."""

import collections
import math
from collections.abc import Callable, Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from quecc_jax.convert.io.layer_store import SlabReader, SlabWriter
from quecc_jax.convert.io.tensors import TensorSource
from quecc_jax.convert.io.writer import ShardWriter, Spec
from quecc_jax.convert.options import DType
from quecc_jax.convert.rules import Path as LeafPath
from quecc_jax.convert.rules import Rule
from quecc_jax.errors import UserError

Count = Callable[[int], None]
"""Called with the number of bytes that were done since the last call."""


def fill(
    writer: SlabWriter,
    rules: Iterable[Rule],
    tensors: TensorSource,
    types: Mapping[LeafPath, np.dtype],
    count: Count,
) -> None:
    """Streams tensors into a checkpoint; one rule's tensors are in memory at a time."""
    for rule in rules:
        theirs = tuple(tensors.read(name) for name in rule.theirs)
        size = sum(array.nbytes for array in theirs)
        for slab, array in zip(rule.ours, rule.to_ours(theirs), strict=True):
            writer.write(slab, cast(array, types[slab.path], rule.theirs[0]))
        del theirs, array
        count(size)


def drain(
    reader: SlabReader, rules: Iterable[Rule], specs: Mapping[str, Spec], writer: ShardWriter, count: Count
) -> None:
    """Streams a checkpoint's slabs into shards; one rule's slabs are in memory at a time."""
    for rule in rules:
        theirs = rule.to_theirs(tuple(reader.read(slab) for slab in rule.ours))
        for name, array in zip(rule.theirs, theirs, strict=True):
            writer.write(name, cast(array, specs[name].dtype, name))
            count(specs[name].size)
        del theirs, array


def carry(writer: ShardWriter, names: Iterable[str], tensors: TensorSource, count: Count) -> None:
    """Copies tensors that no rule reads, bit for bit."""
    for name in names:
        array = tensors.read(name)
        writer.write(name, array)
        count(array.nbytes)


def leaf_dtypes(
    rules: Iterable[Rule], found: Mapping[str, np.dtype], dtype: DType = "keep"
) -> dict[LeafPath, np.dtype]:
    """How each leaf is to be stored.

    Args:
      rules: what fills the leaves.
      found: types of their tensors.
      dtype: the type of all of them, or "keep" for their own.

    Raises:
      UserError: tensors of one leaf differ in type, or are not floating-point numbers.
    """
    types: dict[LeafPath, np.dtype] = {}
    for rule in rules:
        for name in rule.theirs:
            if not jnp.issubdtype(found[name], jnp.floating):
                raise UserError(
                    f"{name} is stored as {found[name]}; quantised weights are not read, "
                    "give the model in half precision"
                )
            for slab in rule.ours:
                kind = types.setdefault(slab.path, found[name])
                if dtype == "keep" and kind != found[name]:
                    leaf = "/".join(slab.path)
                    raise UserError(
                        f"{name} is {found[name]} and others that make up {leaf} are {kind}; "
                        "choose one type with --dtype"
                    )
    return types if dtype == "keep" else dict.fromkeys(types, _numpy(dtype))


def tensor_specs(
    rules: Iterable[Rule], have: Mapping[LeafPath, np.dtype], dtype: DType = "keep"
) -> dict[str, Spec]:
    """The tensors that rules make of leaves of some types.

    Raises:
      UserError: one tensor would be made of leaves of several types.
    """
    specs: dict[str, Spec] = {}
    for rule in rules:
        kinds = {have[slab.path] for slab in rule.ours} if dtype == "keep" else {_numpy(dtype)}
        if len(kinds) > 1:
            raise UserError(
                f"{rule.theirs[0]} would be made of {' and '.join(map(str, kinds))}; "
                "choose one type with --dtype"
            )
        (kind,) = kinds
        specs |= {name: Spec(shape, kind) for name, shape in zip(rule.theirs, rule.shapes, strict=True)}
    return specs


def specs_of(tensors: TensorSource, names: Iterable[str]) -> dict[str, Spec]:
    """The tensors of these names as they are stored."""
    return {name: Spec(tensors.shapes[name], tensors.dtypes[name]) for name in names}


def sum_bytes(specs: Mapping[str, Spec]) -> int:
    """Bytes of all tensors."""
    return sum(spec.size for spec in specs.values())


def main_dtype(specs: Mapping[str, Spec]) -> str | None:
    """The type that most numbers have; None without tensors."""
    sizes = collections.Counter[str]()
    for spec in specs.values():
        sizes[str(spec.dtype)] += math.prod(spec.shape)
    return sizes.most_common(1)[0][0] if sizes else None


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """The array in another floating-point type.

    Raises:
      UserError: a number is too large for the type.
    """
    if array.dtype == dtype:
        return array
    # NumPy notices what overflows between its own types only.
    wide = array.astype(np.float32) if array.dtype.itemsize < 4 else array
    try:
        with np.errstate(over="raise", invalid="ignore"):
            return wide.astype(dtype)
    except FloatingPointError:
        raise UserError(f"{name} holds numbers too large for {dtype}; use --dtype bfloat16") from None


def _numpy(dtype: DType) -> np.dtype:
    return np.dtype(getattr(jnp, dtype))
