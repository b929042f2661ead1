"""Mesh, logical-axis rules, and the shardings that follow from them.

Mesh axes: `data` (replicas; across slices on multi-slice pods), `fsdp` (parameters and batch) and
`tensor` (heads and MLP columns). Modules name logical axes; only this file knows mesh axes.
"""

import math
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A data x fsdp x tensor mesh over `devices` (default: all).

    Raises:
      UserError: more than one axis is -1, or the axes do not multiply to the device count.
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
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def resolve(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh, rules: Rules = RULES,
            where: str = "array") -> NamedSharding:  # fmt: skip
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


def parameter_shardings(boxed: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Shardings of a tree of parameters that still carry their logical axis boxes.

    Args:
      boxed: what `jax.eval_shape` of a Linen init returns.

    Returns:
      The same tree without boxes, with a NamedSharding per leaf.
    """

    def one(path: Any, leaf: Any) -> NamedSharding:
        where = "/".join(str(getattr(k, "key", k)) for k in path)
        if isinstance(leaf, nn.LogicallyPartitioned):
            return resolve(leaf.names, leaf.value.shape, mesh, rules, where)
        raise UserError(f"{where}: declared without logical axes")

    def is_box(leaf: Any) -> bool:
        return isinstance(leaf, nn.LogicallyPartitioned)

    return jax.tree_util.tree_map_with_path(one, boxed, is_leaf=is_box)
