"""Memory of a compiled program on one chip, by buffer, read from XLA's buffer assignment."""

import re
from typing import NamedTuple

from quecc_jax.aot.hlo import Program

_ALLOCATION = re.compile(r"allocation \d+: size (\d+), (.*)")
_VALUE = re.compile(r" value: <\d+ ([\w.\-]+)\S*( \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)")


class Memory(NamedTuple):
    """Bytes per chip."""

    arguments: int
    """State and batch."""
    temporaries: int
    """What the step needs beside them, at its peak."""
    output: int
    aliased: int
    """Part of the output that lies where arguments lay, which are donated."""
    code: int

    @property
    def total(self) -> int:
        """All that must fit at once."""
        return self.arguments + self.temporaries + self.output - self.aliased + self.code


class Buffer(NamedTuple):
    """One piece of main memory."""

    bytes: int
    kind: str
    """`argument`, `output` or `temporary`."""
    shape: str
    name: str
    """Where in the state or the program it comes from."""


class Assignment(NamedTuple):
    """All of a program's main memory."""

    memory: Memory
    buffers: list[Buffer]
    """The largest first. Temporaries share memory over time; each offset is listed once, by what first
    takes all of it."""


def parse_assignment(text: str, program: Program, code: int = 0) -> Assignment:
    """The main memory in the text of a buffer assignment.

    Args:
      text: the compiler's dump `*-buffer-assignment.txt`.
      program: the same program, for the names of its instructions.
      code: bytes of the machine code, which the assignment does not hold.
    """
    names = {i.name: short_name(i.op_name) for c in program.computations.values() for i in c.values()}
    parameters = {
        int(i.literal): names[i.name]
        for i in program.computations[program.entry].values()
        if i.opcode == "parameter"
    }
    sums = dict.fromkeys(("argument", "output", "temporary", "aliased"), 0)
    buffers: list[Buffer] = []
    at_offset: dict[tuple[int, int], Buffer] = {}
    kind = ""
    for line in text.splitlines():
        if head := _ALLOCATION.match(line):
            size, rest = int(head[1]), head[2]
            kind = _kind(rest)
            if not kind:
                continue
            sums[kind] += size
            if kind == "argument" and "maybe-live-out" in rest:
                sums["aliased"] += size
            if kind == "argument":
                number = int(re.findall(r"parameter (\d+)", rest)[0])
                shape = (re.findall(r"\|(.*?)\|", rest) or [""])[0]
                buffers.append(Buffer(size, kind, shape, parameters.get(number, "")))
        elif kind in ("temporary", "output") and (value := _VALUE.match(line)):
            name = names.get(value[1], "") or value[1]
            one = Buffer(int(value[3]), kind, value[5].split("{")[0], name)
            # What a loop hands round has no name of its own; the instruction that made it has.
            key = (int(value[4]), one.bytes)
            if key not in at_offset or (_unnamed(at_offset[key].name) and not _unnamed(name)):
                at_offset[key] = one
    buffers += at_offset.values()
    output, aliased = sums["output"] + sums["aliased"], sums["aliased"]
    memory = Memory(sums["argument"], sums["temporary"], output, aliased, code)
    return Assignment(memory, sorted(buffers, key=lambda b: -b.bytes))


def _kind(text: str) -> str:
    """Which part of main memory an allocation belongs to; empty for what lies elsewhere."""
    if "color" in text and not re.search(r"color 0\b", text):
        return ""
    if "parameter" in text:
        return "argument"
    return "output" if "maybe-live-out" in text else "temporary"


def _unnamed(name: str) -> bool:
    return "/" not in name


def short_name(op_name: str) -> str:
    """A name without what every name has: `jit(step)`, loops, transformations' wrappers, brackets of keys."""
    if op_name.startswith(("state.", "batch.")):
        return re.sub(r"\[\\?'?(\w+)\\?'?\]", r"/\1", op_name)
    name = re.sub(r"^jit\(\w+\)/", "", op_name)
    name = re.sub(r"\bwhile/body/|\bclosed_call/|\bjit\((\w+)\)", r"\1", name)
    return name.replace("transpose(jvp())/", "backward/").replace("jvp()/", "")
