"""How tensors of another project map to slabs of this library's parameters, in both directions."""

import dataclasses
from collections.abc import Callable
from typing import Any

Array = Any
Arrays = tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Slab:
    """One leaf of the parameter tree, or one layer of a leaf that is stacked over layers."""

    path: tuple[str, ...]
    """E.g. ("decoder", "layers", "q", "kernel")."""
    layer: int | None
    """Index on the leaf's first axis; None means the whole leaf."""
    shape: tuple[int, ...]
    """Shape of the slab, without the axis of layers."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A group of their tensors and the group of our slabs that hold the same numbers."""

    theirs: tuple[str, ...]
    """Tensor names, e.g. ("model.layers.0.self_attn.qkv_proj.weight",)."""
    shapes: tuple[tuple[int, ...], ...]
    """Their shapes, in order."""
    ours: tuple[Slab, ...]
    to_ours: Callable[[Arrays], Arrays]
    """Their tensors to our slabs: an exact rearrangement that keeps the dtype."""
    to_theirs: Callable[[Arrays], Arrays]
    """The inverse."""
