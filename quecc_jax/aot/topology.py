"""TPU topologies: their names, and devices to compile for where no TPU is attached."""

import math
import os
import re
from typing import Any, NamedTuple

from quecc_jax.aot.chips import CHIPS, Chip, find_chip
from quecc_jax.errors import UserError

HOST_CHIPS = 4
"""Chips of the smallest whole host."""


class Topology(NamedTuple):
    """One or several equal slices of one kind of chip."""

    chip: Chip
    shape: tuple[int, ...]
    """Chips along the axes of a slice."""
    slices: int
    """Slices that talk over the data-centre network (DCN)."""

    @property
    def name(self) -> str:
        """As it is written: `v5e:16x16`, or `2*v5e:16x16` for two slices."""
        several = f"{self.slices}*" if self.slices > 1 else ""
        return f"{several}{self.chip.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str) -> Topology:
    """A topology from `v5e:16x16`, `v5p:2x4x4` or `2*v5e:16x16`.

    Raises:
      UserError: another form, a chip that is not in the table, or several slices of one whose rate between
        slices is not.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+){1,2})", text)
    tpus = [chip.name for chip in CHIPS if chip.axes]
    if not match or match[2] not in tpus:
        raise UserError(
            f"topology {text!r} is not known; write CHIP:AxB, as in v5e:16x16, v5p:2x4x4 or "
            f"2*v5e:16x16 for two slices, with one of the chips {', '.join(tpus)}"
        )
    chip, shape = find_chip(match[2]), tuple(int(n) for n in match[3].split("x"))
    if len(shape) != chip.axes or 0 in shape or match[1] == "0":
        raise UserError(f"topology {text!r}: a {chip.name} slice has {chip.axes} axes of at least 1 chip")
    topology = Topology(chip, shape, int(match[1] or 1))
    if topology.slices > 1 and not chip.dcn_bytes:
        raise UserError(f"topology {text!r}: no rate between slices is known for {chip.name}; take one slice")
    return topology


def prepare_environment() -> None:
    """Tells JAX and the TPU compiler, before either is loaded, that this machine has no TPU.

    Otherwise the compiler asks the cloud's metadata server what it runs on, and waits.
    """
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE="v5litepod-16",
        TPU_WORKER_HOSTNAMES="localhost",
        # Several compilations may run side by side: none of them holds a chip.
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )


def topology_devices(topology: Topology) -> list[Any]:
    """The devices of a topology, which programs can be compiled for but not run on.

    Raises:
      UserError: the compiler is not installed, or does not know a slice of that shape.
    """
    from jax.experimental import topologies

    one = topology._replace(slices=1).name
    several = {"num_slices": topology.slices} if topology.slices > 1 else {}
    # v4 is seen as one device per chip only when asked; the others are by themselves.
    cores = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
    # A host is taken to have four chips or more unless told otherwise, and notebooks are lent a single one.
    small = math.prod(topology.shape) < HOST_CHIPS
    part = {"chips_per_host_bounds": [*topology.shape, 1][:3]} if small else {}
    try:
        found = topologies.get_topology_desc(one, platform="tpu", **several, **cores, **part)
    except Exception as error:
        raise UserError(_reason(topology, str(error))) from None
    return list(found.devices)


def _reason(topology: Topology, message: str) -> str:
    if "not installed" in message or "No module named" in message:
        return "the TPU compiler is not installed here; pip install -r requirements/tpu.txt brings libtpu"
    sentence = message.split(": ", 1)[-1].splitlines()[0].rstrip(".")
    return f"the TPU compiler does not take the topology {topology.name}: {sentence}"
