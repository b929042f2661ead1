"""The roofline of a compiled program: a lower bound of its step time on a chip, and a prediction from it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from quecc_jax.aot import hlo
from quecc_jax.aot.collectives import Collective, amounts, collectives
from quecc_jax.aot.topology import Topology
from quecc_jax.aot.traffic import traffic

EFFICIENCY = 0.75
"""Share of the governing bound's peak that a step is taken to reach, all bounds overlapping.

MaxText's published results on v5e-256 are 56 to 67 percent of the peak in model FLOPs (16B to 128B
parameters); with what their rematerialisation recomputes that is about three quarters of the peak.
"""


class NetworkUse(NamedTuple):
    """All collectives of one kind over one network, per chip and step."""

    kind: str
    network: str
    """`ICI` within a slice, `DCN` between slices."""
    bytes: int
    """Bytes that a chip receives, at least."""
    times: int
    seconds: float


def network_use(found: Sequence[Collective], topology: Topology, devices: Sequence[Any]) -> list[NetworkUse]:
    """What a program sends, by kind and network.

    A collective over several axes of the torus uses all their links: two per axis that closes to a ring, one
    where the axis ends (the chip at the end has no more). A permutation is taken to run in both directions.

    Args:
      devices: those of the first slice in the program's order, with coordinates.
    """
    sums: dict[tuple[str, str], list[float]] = {}
    for one in found:
        if one.group:
            network, received = "ICI", one.received
            links = _links(one, [devices[number].coords for number in one.group], topology)
            rate = topology.chip.link_bytes * links
        else:
            network, received = "DCN", amounts(one.kind, one.operand, topology.slices)[1]
            rate = topology.chip.dcn_bytes
        if received:
            total = sums.setdefault((one.kind, network), [0, 0, 0.0])
            for slot, value in enumerate((received, 1, received / rate)):
                total[slot] += value * one.times
    return sorted(
        (NetworkUse(kind, network, int(b), int(n), s) for (kind, network), (b, n, s) in sums.items()),
        key=lambda e: -e.seconds,
    )


def _links(one: Collective, coordinates: Sequence[Sequence[int]], topology: Topology) -> int:
    """Links over which a chip receives a collective."""
    if one.kind == "collective-permute":
        return 2
    links = 0
    for axis, size in enumerate(topology.shape):
        if len({c[axis] for c in coordinates}) > 1:
            links += 2 if size % topology.chip.wraps == 0 else 1
    return links


class Bounds(NamedTuple):
    """Seconds per step that each resource needs at its peak rate."""

    compute: float
    hbm: float
    ici: float
    dcn: float

    @property
    def governing(self) -> str:
        """The name of the largest."""
        return max(self._fields, key=lambda name: getattr(self, name))

    @property
    def step_seconds(self) -> float:
        """The predicted step time."""
        return max(self) / EFFICIENCY


def bounds(topology: Topology, flops: float, traffic: float, sent: Sequence[NetworkUse]) -> Bounds:
    """Bounds of a program by its FLOPs, bytes of main memory and collectives per chip and step."""
    networks = {name: sum(e.seconds for e in sent if e.network == name) for name in ("ICI", "DCN")}
    chip = topology.chip
    return Bounds(flops / chip.flops, traffic / chip.hbm_bytes, networks["ICI"], networks["DCN"])


class Work(NamedTuple):
    """What one run of a program takes of a chip."""

    flops: int
    traffic: int
    """Bytes between main memory and the cores."""
    sent: list[NetworkUse]
    bounds: Bounds


def work_of(program: hlo.Program, topology: Topology, devices: Sequence[Any]) -> Work:
    """Counts a program's work, and bounds its time.

    Args:
      devices: as for `network_use`.
    """
    flops, moved = hlo.flops(program), traffic(program)
    sent = network_use(collectives(program), topology, devices)
    return Work(flops, moved, sent, bounds(topology, flops, moved, sent))
