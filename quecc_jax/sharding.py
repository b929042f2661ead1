"""Mesh, logical-axis rules, and the shardings that follow from them.

Mesh axes: `data` (replicas; across slices on multi-slice pods), `fsdp` (parameters and batch) and
`tensor` (heads and MLP columns, and on request the sequence between blocks). Modules name logical axes;
only this file knows mesh axes.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from quecc_jax.config import MeshConfig
from quecc_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

RULES: Rules = (
    ("batch", ("data", "fsdp")),
    ("sequence", None),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("head_dim", None),
    ("layers", None),
)
"""Logical axis -> mesh axes. Every logical name must be listed, so that a typo cannot pass."""

ACTIVATION_AXES = ("batch", "sequence")
"""Logical axes that no parameter has."""


def sharding_rules(config: MeshConfig) -> Rules:
    """The rules of a run: with `sequence_parallel` the residual stream's sequence lies over `tensor`."""
    return (
        (("sequence", "tensor"), *(r for r in RULES if r[0] != "sequence"))
        if config.sequence_parallel
        else RULES
    )


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A data x fsdp x tensor mesh over `devices` (default: all).

    Of several slices, `data` goes over the slices and all else stays within one.

    Raises:
      UserError: more than one axis is -1, the axes do not multiply to the device count, or `data` does not
        divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise UserError(f"mesh {dict(zip(AXES, sizes, strict=True))}: sizes are positive, at most one is -1")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // -math.prod(sizes))
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} needs {math.prod(sizes)} devices, "
            f"{len(devices)} are here; change mesh.data, mesh.fsdp or mesh.tensor"
        )
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
    if sizes[0] % slices:
        raise UserError(
            f"mesh.data {sizes[0]} does not divide over {slices} slices; make it a multiple, so "
            "that only gradients travel between slices"
        )
    inner, outer = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1)
    return Mesh(mesh_utils.create_hybrid_device_mesh(inner, outer, devices), AXES, axis_types=types)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def batch_parts(mesh: Mesh | None = None) -> int:
    """Parts that rows are split into on a mesh, by default that in force (`jax.set_mesh`); 1 without one."""
    shape = (mesh or jax.sharding.get_abstract_mesh()).shape
    return math.prod(shape.get(axis, 1) for axis in ("data", "fsdp"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def spread_rows(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """A tree of arrays with rows over data and fsdp; as it is without a mesh.

    Args:
      tree: on the host, the same in all processes of the mesh, or on its devices.
    """
    if mesh is None:
        return tree
    rows = batch_sharding(mesh)

    def one(x: jax.Array | np.ndarray) -> jax.Array:
        if isinstance(x, jax.Array):
            return jax.device_put(x, rows)
        return jax.make_array_from_callback(x.shape, rows, lambda part: x[part])

    return jax.tree.map(one, tree)


def on_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """A whole array, of which this process may hold a part; all processes that hold parts must ask for it."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        assert isinstance(x.sharding, NamedSharding) and isinstance(x.sharding.mesh, Mesh)
        x = jax.device_put(x, replicated(x.sharding.mesh))
    return np.asarray(x)


def resolve(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh,
    rules: Rules = RULES,
    where: str = "array",
) -> NamedSharding:
    """The sharding of one array from its logical axis names.

    Raises:
      UserError: a name has no rule, two axes land on one mesh axis, or a dimension does not
        divide; the message names the array and the axis.
    """
    table, used, spec = dict(rules), set[str](), []
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in table:
            raise UserError(f"{where}: logical axis {name!r} has no sharding rule; known: {sorted(table)}")
        target = table[name] if name is not None else None
        axes = (target,) if isinstance(target, str) else tuple(target or ())
        parts = math.prod(mesh.shape[a] for a in axes)
        if parts > 1 and used & set(axes):
            raise UserError(
                f"{where}: axis {name!r} would use mesh axes {axes} a second time; change its rule"
            )
        if size % parts:
            raise UserError(
                f"{where}: axis {name!r} of size {size} does not divide over {parts} devices of mesh "
                f"axes {axes}; change the mesh or the model's size"
            )
        used |= set(axes)
        spec.append(target)
    return NamedSharding(mesh, PartitionSpec(*spec))


class Placement(NamedTuple):
    """Where one parameter lies."""

    name: str
    """Path in the parameter tree."""
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    """Logical names of its dimensions."""
    spec: tuple[str | tuple[str, ...] | None, ...]
    """Mesh axes of its dimensions."""
    bytes: int
    chip_bytes: int
    """Bytes on each device."""


def placements(boxed: PyTree, placed: PyTree) -> list[Placement]:
    """The resolved table: one line per parameter, in the order of the tree.

    Args:
      boxed: parameters that still carry their logical axis boxes.
      placed: the same tree without boxes, as stand-ins with the NamedShardings that a run gives them.
    """
    rows = []
    for (name, box), leaf in zip(_boxes(boxed), jax.tree.leaves(placed), strict=True):
        width = jax.dtypes.itemsize_bits(leaf.dtype) / 8
        local = math.prod(leaf.sharding.shard_shape(leaf.shape))
        whole, spec = math.prod(leaf.shape), tuple(leaf.sharding.spec)
        rows.append(Placement(name, leaf.shape, box.names, spec, int(whole * width), int(local * width)))
    return rows


def _boxes(boxed: PyTree) -> list[tuple[str, nn.LogicallyPartitioned]]:
    """Parameters by path.

    Raises:
      UserError: one has no logical axes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )
    named = [("/".join(str(getattr(k, "key", k)) for k in path), leaf) for path, leaf in leaves]
    for name, leaf in named:
        if not isinstance(leaf, nn.LogicallyPartitioned):
            raise UserError(f"{name}: declared without logical axes")
    return named


def parameter_shardings(boxed: PyTree, mesh: Mesh, rules: Rules = RULES) -> PyTree:
    """Shardings of a tree of parameters that still carry their logical axis boxes.

    Args:
      boxed: what `jax.eval_shape` of a Linen init returns.

    Returns:
      The same tree without boxes, with a NamedSharding per leaf.

    Raises:
      UserError: as `resolve`, by the parameter's name; a rule for axes that nothing has, or onto mesh axes
        that do not exist.
    """
    boxes = _boxes(boxed)
    declared = {*ACTIVATION_AXES, *(name for _, box in boxes for name in box.names)}
    for name, target in rules:
        if name not in declared:
            raise UserError(
                f"the sharding rule for {name!r} matches nothing; remove it, or use one of "
                f"{sorted(n for n in declared if n)}"
            )
        axes = (target,) if isinstance(target, str) else tuple(target or ())
        if missing := [axis for axis in axes if axis not in mesh.shape]:
            raise UserError(
                f"the sharding rule for {name!r} names the mesh axis {missing[0]!r}; the mesh "
                f"has {', '.join(mesh.shape)}"
            )
    found = [resolve(box.names, box.value.shape, mesh, rules, name) for name, box in boxes]
    return jax.tree.unflatten(jax.tree.structure(nn.meta.unbox(boxed)), found)
