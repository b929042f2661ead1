"""How tensors of another project map to slabs of this library's parameters, in both directions."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from quecc_jax.errors import UserError

Array = np.ndarray
Arrays = tuple[Array, ...]
Shape = tuple[int, ...]
Path = tuple[str, ...]
PyTree = dict[str, Any]
"""Nested dicts of arrays."""

SHOWN = 20
"""Names of one kind that an error lists before it only counts them."""


@dataclasses.dataclass(frozen=True)
class Slab:
    """One of our parameters, or one layer of a parameter that is stacked over layers."""

    path: Path
    """E.g. ("decoder", "layers", "q", "kernel")."""
    layer: int | None
    """Index on the leaf's first axis; None means the whole leaf."""
    shape: Shape
    """Shape of the slab, without the axis of layers."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A group of their tensors and the group of our slabs that hold the same numbers, and the way between."""

    theirs: tuple[str, ...]
    """Tensor names, e.g. ("model.layers.0.self_attn.qkv_proj.weight",)."""
    shapes: tuple[Shape, ...]
    """Their shapes, in order."""
    ours: tuple[Slab, ...]
    to_ours: Callable[[Arrays], Arrays]
    """Their tensors to our slabs: an exact rearrangement that keeps the dtype."""
    to_theirs: Callable[[Arrays], Arrays]
    """The inverse."""


@dataclasses.dataclass(frozen=True)
class Scope:
    """A module's path in the parameter tree, and which layer of a stack it is."""

    path: Path
    layer: int | None = None

    def slab(self, name: str, *shape: int) -> Slab:
        """The leaf `name`, e.g. "q/kernel", of this module."""
        return Slab((*self.path, *name.split("/")), self.layer, shape)


def same(name: str, slab: Slab) -> Rule:
    """One tensor that both sides hold in the same layout."""
    return Rule((name,), (slab.shape,), (slab,), lambda theirs: theirs, lambda ours: ours)


def vector(name: str, *slabs: Slab) -> Rule:
    """A vector that holds our slabs one after another, each flattened: biases of fused projections."""
    sizes = [math.prod(s.shape) for s in slabs]

    def split(theirs: Arrays) -> Arrays:
        return tuple(
            part.reshape(slab.shape) for part, slab in zip(_cut(theirs[0], sizes), slabs, strict=True)
        )

    def join(ours: Arrays) -> Arrays:
        return (_concatenate([a.reshape(-1) for a in ours]),)

    return Rule((name,), ((sum(sizes),),), slabs, split, join)


def matrix(name: str, *slabs: Slab, inputs: int = 1) -> Rule:
    """A torch Linear weight [out, in] that holds our kernels, transposed, one after another.

    Args:
      name: their tensor.
      slabs: our kernels; the first `inputs` axes are the input's, the others the output's.
      inputs: axes of the input, e.g. 2 for a kernel [heads, head_dim, D].
    """
    wide = math.prod(slabs[0].shape[:inputs])
    rows = [math.prod(s.shape[inputs:]) for s in slabs]

    def split(theirs: Arrays) -> Arrays:
        parts = _cut(theirs[0], rows)
        return tuple(part.T.reshape(slab.shape) for part, slab in zip(parts, slabs, strict=True))

    def join(ours: Arrays) -> Arrays:
        return (_concatenate([a.reshape(wide, -1).T for a in ours]),)

    return Rule((name,), ((sum(rows), wide),), slabs, split, join)


def dense(name: str, scope: Scope, own: str, ins: Shape, outs: Shape, bias: bool) -> list[Rule]:
    """A Linear `name` as kernel [*ins, *outs] and bias [*outs] of our module `own`."""
    rules = [matrix(f"{name}.weight", scope.slab(f"{own}/kernel", *ins, *outs), inputs=len(ins))]
    return rules + ([vector(f"{name}.bias", scope.slab(f"{own}/bias", *outs))] if bias else [])


def norm(name: str, scope: Scope, own: str, width: int, bias: bool) -> list[Rule]:
    """A norm's weight, and bias, as scale and bias of our module `own`."""
    rules = [same(f"{name}.weight", scope.slab(f"{own}/scale", width))]
    return rules + ([same(f"{name}.bias", scope.slab(f"{own}/bias", width))] if bias else [])


def attention(name: str, scope: Scope, own: str, width: int, heads: int) -> list[Rule]:
    """A torch MultiheadAttention `name`, whose q, k and v share one input matrix, as our module `own`."""
    split = (heads, width // heads)
    return [
        matrix(f"{name}.in_proj_weight", *(scope.slab(f"{own}/{k}_kernel", width, *split) for k in "qkv")),
        vector(f"{name}.in_proj_bias", *(scope.slab(f"{own}/{k}_bias", *split) for k in "qkv")),
        *dense(f"{name}.out_proj", scope, f"{own}/out", split, (width,), bias=True),
    ]


def _cut(array: Array, sizes: Sequence[int]) -> list[Array]:
    """Consecutive pieces of the first axis."""
    ends = np.cumsum(sizes).tolist()
    return [array[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _concatenate(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def leaf_shapes(rules: Iterable[Rule]) -> dict[Path, Shape]:
    """Shapes of the parameters that the rules fill, by path, with their axis of layers.

    Raises:
      ValueError: a slab is filled twice, or a stack misses a layer or mixes shapes.
    """
    found: dict[Path, dict[int | None, Shape]] = {}
    for slab in (slab for rule in rules for slab in rule.ours):
        layers = found.setdefault(slab.path, {})
        if slab.layer in layers:
            raise ValueError(f"two rules fill {'/'.join(slab.path)}, layer {slab.layer}")
        layers[slab.layer] = slab.shape
    shapes = {}
    for path, layers in found.items():
        one = next(iter(layers.values()))
        stacked = None not in layers
        if set(layers.values()) != {one} or set(layers) != (set(range(len(layers))) if stacked else {None}):
            raise ValueError(f"{'/'.join(path)} is filled by layers {list(layers.items())}")
        shapes[path] = (len(layers), *one) if stacked else one
    return shapes


def check(
    rules: Iterable[Rule],
    found: Mapping[str, Shape],
    ignored: Iterable[str] = (),
    where: str = "the checkpoint",
) -> None:
    """Compares the tensors that rules need with those that are there.

    Args:
      rules: what is needed.
      found: shapes by name of all tensors that are there.
      ignored: names among them that are knowingly left out.
      where: the checkpoint, for the message.

    Raises:
      UserError: naming every missing, extra and reshaped tensor (the first twenty of each kind).
      ValueError: two rules read the same tensor.
    """
    needed: dict[str, Shape] = {}
    for rule in rules:
        for name, shape in zip(rule.theirs, rule.shapes, strict=True):
            if name in needed:
                raise ValueError(f"two rules read {name}")
            needed[name] = tuple(shape)
    problems = {
        "missing": [f"{n} {list(s)}" for n, s in needed.items() if n not in found],
        "unknown": [f"{n} {list(found[n])}" for n in found.keys() - needed.keys() - set(ignored)],
        "of another shape": [
            f"{n} {list(found[n])} instead of {list(s)}"
            for n, s in needed.items()
            if n in found and tuple(found[n]) != s
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(v)} {kind}: {some(v, SHOWN)}" for kind, v in problems.items() if v)
        raise UserError(
            f"the tensors of {where} are not those of its config.json: {listed}; "
            "is a shard missing, or does the config belong to another model?"
        )


def some(names: Iterable[str], shown: int) -> str:
    """The first of some names in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def to_tree(rules: Iterable[Rule], tensors: Mapping[str, Array]) -> PyTree:
    """The nested parameters that tensors in memory amount to, stacked over layers."""
    leaves: dict[Path, dict[int | None, Array]] = {}
    for rule in rules:
        arrays = rule.to_ours(tuple(tensors[name] for name in rule.theirs))
        for slab, array in zip(rule.ours, arrays, strict=True):
            leaves.setdefault(slab.path, {})[slab.layer] = array
    return unflatten_dict(
        {
            path: layers[None] if None in layers else np.stack([layers[i] for i in range(len(layers))])
            for path, layers in leaves.items()
        }
    )


def from_tree(rules: Iterable[Rule], tree: PyTree) -> dict[str, Array]:
    """The inverse of `to_tree`: their tensors by name."""
    leaves, tensors = flatten_dict(tree), dict[str, Array]()
    for rule in rules:
        ours = tuple(leaves[s.path] if s.layer is None else leaves[s.path][s.layer] for s in rule.ours)
        tensors.update(zip(rule.theirs, rule.to_theirs(ours), strict=True))
    return tensors
