"""Which processes answer together: groups that hold whole copies of the parameters, and share out the questions.

Processes whose devices share a copy of the parameters (mesh axes `fsdp` and `tensor`) are one group and run the same
programs on the same questions. Axis `data` lies between groups, which exchange nothing until all have answered.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import multihost

from quecc_jax.config import MeshConfig
from quecc_jax.errors import UserError
from quecc_jax.sharding import make_mesh

T = TypeVar("T")
WAIT_MS = 7 * 24 * 3600 * 1000
"""Longest wait for a process that lives; one that dies is noticed by its missing heartbeats, one that is stuck ends
itself by its own watchdog."""


class Group(NamedTuple):
    """The group of this process, by default of one that runs alone on its first device."""

    mesh: Mesh | None = None
    """Of the group's devices; None for one device."""
    number: int = 0
    total: int = 1
    """Groups there are."""
    writes: bool = True
    """This process is the group's first, which alone writes."""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This group's part: neighbours, which often ask about one image; parts differ by one item at most."""
        start, stop = (len(items) * number // self.total for number in (self.number, self.number + 1))
        return items[start:stop]


def answering_mesh(config: MeshConfig | None) -> Mesh | None:
    """The mesh over all devices that settings name; None for one device, the first of a process that runs alone.

    Raises:
      UserError: as `make_mesh`.
    """
    if config is None or (config == MeshConfig(1, 1, 1) and jax.process_count() == 1):
        return None
    mesh = make_mesh(config)
    return None if mesh.size == 1 else mesh


def group_of(config: MeshConfig | None) -> Group:
    """The group of this process.

    Raises:
      UserError: as `make_mesh`.
    """
    mesh = answering_mesh(config)
    if mesh is None:
        return Group()
    copies = [{device.process_index for device in copy.flat} for copy in mesh.devices]
    groups: list[set[int]] = []
    for processes in copies:
        touching = [group for group in groups if group & processes]
        groups = [group for group in groups if group not in touching] + [processes.union(*touching)]
    groups.sort(key=min)
    me = jax.process_index()
    number = next(n for n, group in enumerate(groups) if me in group)
    mine = mesh.devices[[processes <= groups[number] for processes in copies]]
    own = Mesh(mine, mesh.axis_names, axis_types=mesh.axis_types)
    return Group(None if own.size == 1 else own, number, len(groups), me == min(groups[number]))


def gathered(value: T) -> list[T]:
    """What every process gives, in their order; each waits until all have given something.

    Args:
      value: what JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    # Devices wait for each other for a limited time only; processes may come hours apart.
    multihost.get_barrier_sync_fn()(key="quecc_jax gathers", timeout_ms=WAIT_MS)
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int32)).reshape(-1)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    every = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(every, sizes, strict=True)]


def from_groups(value: T, group: Group) -> list[T]:
    """What every group gives, in their order, as `gathered`."""
    return [one for one in gathered(value if group.writes else None) if one is not None]


def check_same(what: str, value: Callable[[], object]) -> None:
    """Compares what must be equal in all processes.

    Args:
      what: it is, for messages.
      value: makes something that JSON can hold, or `repr` can tell apart; not called where a process runs alone.

    Raises:
      UserError: some process has another value than the first.
    """
    if jax.process_count() == 1:
        return
    hashes = gathered(hashlib.sha256(json.dumps(value(), default=repr).encode()).hexdigest())
    if other := [number for number, one in enumerate(hashes) if one != hashes[0]]:
        raise UserError(
            f"process {other[0]} has other {what} than process 0; start the same command on every host, where "
            "the same files are"
        )


def together(work: Callable[[], T]) -> T:
    """Does something on the host in all processes, and has all of them go on, or none.

    Raises:
      UserError: it failed here, or in another process.
    """
    failure, result = None, None
    try:
        result = work()
    except UserError as error:
        failure = error
    others = gathered(None if failure is None else str(failure)) if jax.process_count() > 1 else []
    if failure is not None:
        raise failure
    if said := next((one for one in others if one is not None), None):
        raise UserError(said)
    return result  # type: ignore[return-value]
