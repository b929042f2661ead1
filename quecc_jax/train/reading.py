"""How arrays are read from a checkpoint: what a host holds of them at once, and which host reads what."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

IN_FLIGHT = 512 << 20
"""Bytes that a process reads at once, if no device's part of an array is larger: as they are stored, before they have
the type and place that they are to have."""
REPLICAS = "data"
"""The mesh axis along which all parameters and optimizer slots are the same."""


def reading(stored: PyTree, wanted: PyTree) -> ocp.Context:
    """Settings to load arrays under.

    A host reads the chunks of its devices' parts, no more than `IN_FLIGHT` bytes at once unless one part needs more.
    Of replicas that lie on other hosts the first is read, and sent to the others.

    Args:
      stored: orbax's metadata of arrays, or a tree that has more in it.
      wanted: arrays, or ShapeDtypeStructs, some of which have shardings; of the same structure, or a part of it.
    """
    context = ocp.Context()
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(stored)}
    pairs = [
        (leaves[jax.tree_util.keystr(path)], leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)
    ]
    needed = max((_footprint(*pair) for pair in pairs), default=0)
    # Orbax refuses what is not below the limit.
    context.memory.read_concurrent_bytes = max(IN_FLIGHT, needed + 1)
    if any(_on_other_hosts(leaf) for _, leaf in pairs):
        context.array.loading.use_load_and_broadcast = True
        context.array.loading.load_and_broadcast_options.broadcast_memory_limit_bytes = IN_FLIGHT
    return context


def _footprint(stored: Any, wanted: Any) -> int:
    """Bytes of the chunks that one device's part of an array lies in, at most."""
    shape, sharding = stored.shape, getattr(wanted, "sharding", None)
    part = shape if sharding is None else sharding.shard_shape(tuple(shape))
    storage = getattr(stored, "storage", None)
    chunk = (storage and storage.chunk_shape) or shape
    # Chunks are read whole, the last of an axis too, which may stick out of the array.
    spanned = (
        min(math.ceil(size / step), math.ceil(mine / step) + (mine < size)) * step
        for size, mine, step in zip(shape, part, (max(1, step) for step in chunk), strict=True)
    )
    return math.prod(spanned) * stored.dtype.itemsize


def _on_other_hosts(leaf: Any) -> bool:
    """Whether the replicas of an array lie on processes of their own."""
    sharding = getattr(leaf, "sharding", None)
    if jax.process_count() == 1 or not isinstance(sharding, NamedSharding):
        return False
    mesh = sharding.mesh
    if mesh.shape.get(REPLICAS, 1) == 1 or mesh.axis_names[0] != REPLICAS:
        return False
    first, *others = [{device.process_index for device in part.flat} for part in mesh.devices]
    return all(first.isdisjoint(other) for other in others)
