"""The collectives of a compiled program: what it sends between chips, and how often."""

import math
import re
from typing import NamedTuple

from quecc_jax.aot.hlo import Computation, Instruction, Program, runs

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One collective, by one instruction of the program."""

    kind: str
    operand: int
    """Bytes that each device puts in."""
    payload: int
    """Bytes of the whole array that one group puts together, adds up or permutes."""
    received: int
    """Bytes that each device takes in per run, at least."""
    group: tuple[int, ...]
    """The devices of the first group, as positions in the program's device order; empty for a collective
    between slices, which runs among the chips of one position in each of them."""
    times: int
    """Runs per call of the program."""
    op_name: str
    computation: str


def collectives(program: Program) -> list[Collective]:
    """Every collective of a program, those inside fusions and asynchronous ones included.

    The TPU compiler spreads one collective over the computations that it overlaps with; such pieces share
    a channel and count once, as often as the rarest of them runs.
    """
    times, _ = runs(program)
    found: dict[str, Collective] = {}
    for name, computation in program.computations.items():
        for instruction in computation.values():
            kind = instruction.opcode.removesuffix("-start")
            if times.get(name) and (between := _between_slices(instruction, computation, times[name], name)):
                found[f"{name}/{instruction.name}"] = between
            if kind not in KINDS or not times.get(name):
                continue
            operand = sum(a.bytes for o in instruction.operands for a in computation[o].arrays)
            if kind == "all-reduce" and _sliced(instruction, computation):
                kind = "reduce-scatter"
            group = first_group(instruction, program.partitions)
            payload, received = amounts(kind, operand, len(group))
            one = Collective(kind, operand, payload, received, group, times[name], instruction.op_name, name)
            chained = "chain_id=" in instruction.attribute("frontend_attributes")
            key = instruction.attribute("channel_id") if chained else f"{name}/{instruction.name}"
            found[key] = min(one, found.get(key, one), key=lambda c: c.times)
    return list(found.values())


def _sliced(instruction: Instruction, computation: Computation) -> bool:
    """Whether a computation keeps only a slice of what it adds up: how the TPU compiler writes a
    reduce-scatter."""
    root = next((i for i in computation.values() if i.root), None)
    passed = ("bitcast", "reshape", "copy", "dynamic-slice")
    found = False
    while root is not None and root.opcode in passed:
        found = found or root.opcode == "dynamic-slice"
        root = computation[root.operands[0]]
    return found and root is instruction


def _between_slices(
    instruction: Instruction, computation: Computation, times: int, where: str
) -> Collective | None:
    """A collective between slices, which goes through the hosts: a program is compiled for one slice, and
    sends what it has to the runtime that talks to the others."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.text)
    if instruction.opcode != "send" or not kind:
        return None
    size = sum(a.bytes for a in computation[instruction.operands[0]].arrays)
    name = kind[1].lower().replace("_", "-")
    return Collective(name, size, size, size, (), times, instruction.op_name, where)


def amounts(kind: str, operand: int, n: int) -> tuple[int, int]:
    """(payload, bytes received per device) of a collective among n devices that each hold `operand` bytes."""
    if kind == "all-gather":
        return n * operand, (n - 1) * operand
    if kind == "collective-permute":
        return operand, operand
    share = operand * (n - 1) // n
    return operand, 2 * share if kind == "all-reduce" else share


def first_group(instruction: Instruction, devices: int) -> tuple[int, ...]:
    """The first of the groups that a collective runs in, from any of XLA's three notations.

    `{{0,1},{2,3}}` lists them. `[2,4]<=[4,2]T(1,0)` counts through a 4 x 2 array, transposes it and cuts
    the result into 2 groups of 4. `mesh['a'=2,'b'=4] {'b'}` are the devices along the axes in braces.
    """
    text = instruction.attribute("replica_groups")
    if instruction.opcode.startswith("collective-permute"):
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attribute("source_target_pairs"))
        return tuple(int(n) for n in pairs[0]) if pairs else (0,)
    if mesh := re.match(r"@?\w*mesh\[([^\]]*)\]", text):
        sizes = [(axis, int(size)) for axis, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])]
        chosen = re.findall(r"'([^']+)'", instruction.text.split(mesh[0], 1)[1].split("}", 1)[0])
        group, stride = [0], 1
        for axis, size in reversed(sizes):
            if axis in chosen:
                group = [n + stride * k for k in range(size) for n in group]
            stride *= size
        return tuple(sorted(group))
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = ([int(n) for n in part.split(",")] if part else [] for part in iota.groups())
        return tuple(_iota(dims, order or list(range(len(dims))))[: shape[-1]])
    if listed := re.match(r"\{\{([\d,]+)\}", text):
        return tuple(int(n) for n in listed[1].split(","))
    return tuple(range(devices))


def _iota(dims: list[int], order: list[int]) -> list[int]:
    """0, 1, 2, ... written into an array of shape dims, read after transposing it by `order`."""
    numbers = [0]
    for axis in order:
        stride = math.prod(dims[axis + 1 :])
        numbers = [n + stride * k for n in numbers for k in range(dims[axis])]
    return numbers
