"""Reads the text of a compiled XLA program, and how often each of its computations runs.

XLA's own cost analysis counts the body of a loop once, whatever its trip count; here a layer that is
scanned 32 times counts 32 times.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from quecc_jax.records import Finite, json_value, of_form

WIDTH = {
    "pred": 1,
    "s4": 0.5,
    "u4": 0.5,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}
"""Bytes per element; types that are not listed (tokens, semaphores) take no space worth counting."""


class Array(NamedTuple):
    """One array type, as in `bf16[8,128]{1,0:T(8,128)S(1)}`."""

    dtype: str
    dims: tuple[int, ...]
    space: int
    """Memory space: 0 is the chip's main memory (HBM), others lie on the chip."""

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return math.ceil(WIDTH.get(self.dtype, 0) * math.prod(self.dims))


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    """The result; a tuple's leaves in order."""
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    text: str
    """Everything behind the operands: attributes, metadata, backend configuration."""
    literal: str
    """What stands between the parentheses of a constant or parameter."""
    root: bool

    def attribute(self, name: str) -> str:
        """The value of an attribute `name=value`, or an empty text."""
        match = re.search(rf"(?:^|[ ,]){name}=", self.text)
        return _value(self.text, match.end()) if match else ""

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from: `jit(step)/.../dot_general`."""
        match = re.search(r'op_name="([^"]*)"', self.text)
        return match[1] if match else ""


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """A compiled module."""

    computations: dict[str, Computation]
    """By name, each instruction by its name; a computation comes after those that it calls."""
    entry: str
    partitions: int
    """Devices that run this program together."""
    unknown_trips: int = 1
    """How often a loop is taken to run whose trip count is not known."""


def parse(text: str) -> Program:
    """A program from what `jax.stages.Compiled.as_text` returns.

    Newer compilers (libtpu 0.0.52) write `%x#3` where an operand is an element of a tuple. It becomes the
    get-tuple-element instruction that older ones write out, named `x#3`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, kinds = "", dict[str, str]()
    body: Computation | None = None
    # A Pallas kernel's metadata is the one attribute that is written over several lines.
    text = re.sub(r"kernel_metadata=\{\n([^\n]*)\n\}", r"kernel_metadata={\1}", text)
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")) and line.endswith("{"):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            entry = name if line.startswith("ENTRY ") else entry
            body = computations[name] = {}
            kinds = {}
        elif line.startswith("}"):
            body = None
        elif body is not None and " = " in line:
            instruction, kind = _instruction(line)
            for name in instruction.operands:
                for end in (match.end() for match in re.finditer(r"#\d+", name)):
                    body[name[:end]] = _element(name[:end], kinds)
            body[instruction.name], kinds[instruction.name] = instruction, kind
    if not entry:
        raise ValueError("not the text of a compiled program: no line begins with ENTRY")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Program(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(line: str) -> tuple[Instruction, str]:
    """An instruction and the text of its type."""
    line = re.sub(r"/\*.*?\*/", "", line.strip())
    root = line.startswith("ROOT ")
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    kind = _value(rest, 0)
    rest = rest[len(kind) :].lstrip()
    opcode, rest = rest.split("(", 1)
    inside = _value("(" + rest, 0)[1:-1]
    operands = tuple(re.findall(r"%([\w.\-#]+)", inside)) if opcode != "constant" else ()
    arrays = tuple(_arrays(kind))
    made = Instruction(name.lstrip("%"), opcode, arrays, operands, rest[len(inside) + 1 :], inside, root)
    return made, kind


def _element(name: str, kinds: dict[str, str]) -> Instruction:
    """The get-tuple-element that `x#3` stands for; `kinds` has the types of what came before."""
    owner, _, index = name.rpartition("#")
    parts, start, inside = [], 0, kinds[owner].strip()[1:-1]
    while start < len(inside):
        parts.append(_value(inside, start))
        start += len(parts[-1]) + 1
    kind = kinds[name] = [part for part in parts if part][int(index)]
    return Instruction(
        name, "get-tuple-element", tuple(_arrays(kind)), (owner,), f", index={index}", f"%{owner}", False
    )


def _value(text: str, start: int) -> str:
    """The piece of text from `start` to the next space or comma that stands outside all brackets."""
    depth, quoted, i = 0, False, start
    while i < len(text):
        c = text[i]
        if quoted:
            i += c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            depth -= 1
        elif c in " ," and depth == 0:
            break
        i += 1
    return text[start:i]


def _arrays(kind: str) -> Iterator[Array]:
    for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?", kind):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        yield Array(dtype, sizes, int(space[1]) if space else 0)


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction runs once each time it runs (loops apart)."""
    if instruction.opcode in ("while", "async-update", "async-done"):
        return []
    names = []
    for attribute in (
        "calls",
        "to_apply",
        "branch_computations",
        "called_computations",
        "true_computation",
        "false_computation",
    ):
        names += re.findall(r"%([\w.\-]+)", instruction.attribute(attribute))
    return names


def trip_count(program: Program, caller: Computation, loop: Instruction) -> int | None:
    """How often a `while` in `caller` runs its body: as XLA notes it, else from how its counter moves.

    None if neither tells, as for a loop that ends on data.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
    if known:
        return int(known[1])
    # Loops that the compiler itself makes, such as those that overlap a matrix product with the collective
    # of its factors, carry no note. Their counter starts at zero.
    condition = program.computations[loop.attribute("condition").lstrip("%")]
    body = program.computations[loop.attribute("body").lstrip("%")]
    test, result, start = _root(condition), _root(body), caller[loop.operands[0]]
    if test.opcode != "compare" or test.attribute("direction") != "LT" or result.opcode != "tuple":
        return None
    index = condition[test.operands[0]].attribute("index")
    bound = _constant(condition[test.operands[1]], start, caller)
    if not index or bound is None:
        return None
    move = _origin(body, result.operands[int(index)])
    steps = [s for s in (_origin(body, name) for name in move.operands) if s.attribute("index") != index]
    if move.opcode != "add" or len(steps) != 1:
        return None
    step = _constant(steps[0], start, caller)
    return math.ceil(bound / step) if step else None


def _origin(computation: Computation, name: str) -> Instruction:
    """What copies lead back to."""
    while computation[name].opcode == "copy":
        name = computation[name].operands[0]
    return computation[name]


def _constant(value: Instruction, start: Instruction, caller: Computation) -> int | None:
    """The integer that `value` is, also when it is a constant which entered the loop with its carry."""
    if value.opcode == "get-tuple-element" and start.opcode == "tuple":
        value = _origin(caller, start.operands[int(value.attribute("index"))])
    return int(value.literal) if value.opcode == "constant" and value.literal.isdigit() else None


def _root(computation: Computation) -> Instruction:
    return next(i for i in computation.values() if i.root)


def runs(program: Program) -> tuple[dict[str, int], list[str]]:
    """How often each computation runs in one call of the program.

    Every branch of a conditional counts as taken.

    Returns:
      Runs by computation, and the names of loops whose trip count is not known.
    """
    times: dict[str, int] = defaultdict(int, {program.entry: 1})
    unknown = []
    for name in reversed(program.computations):
        for instruction in program.computations[name].values():
            for callee in called(instruction):
                times[callee] += times[name]
            if instruction.opcode == "while":
                trips = trip_count(program, program.computations[name], instruction)
                if trips is None:
                    unknown.append(instruction.name)
                    trips = program.unknown_trips
                times[instruction.attribute("body").lstrip("%")] += times[name] * trips
                times[instruction.attribute("condition").lstrip("%")] += times[name] * (trips + 1)
    return dict(times), unknown


def fused(program: Program) -> set[str]:
    """Computations whose arrays need no memory of their own: what fusions and reductions call."""
    inner = set()
    for computation in program.computations.values():
        for instruction in computation.values():
            if instruction.opcode not in ("call", "conditional", "async-start", "custom-call"):
                inner.update(called(instruction))
    return inner


class _Estimate(msgspec.Struct):
    """What a kernel declares of its cost."""

    flops: Finite = 0.0


def instruction_flops(instruction: Instruction, computation: Computation) -> int:
    """FLOPs of one run of a matrix product or convolution, or those that a kernel declares; else 0.

    One multiply-add is two. Products with padding and with the zeros of dilation are not counted, so that
    batched matrix products which a compiler writes as convolutions count as what they are.
    """
    if instruction.opcode == "dot":
        left = computation[instruction.operands[0]].arrays[0].dims
        contracted = math.prod(left[d] for d in _numbers(instruction.attribute("lhs_contracting_dims")))
        return 2 * math.prod(instruction.arrays[0].dims) * contracted
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, computation)
    if instruction.opcode == "custom-call":
        if kernel := re.match(r"splash_m[hq]a_(fwd|dkv|dq)", instruction.name):
            return _splash_flops(kernel[1], instruction, computation)
        declared = re.search(r'"cost_estimate":(\{[^{}]*\})', instruction.text)
        if declared is None:
            return 0
        name, advice = f"the cost estimate of {instruction.name}", "use another version of XLA"
        return int(of_form(json_value(declared[1].encode(), name, advice), _Estimate, name, advice).flops)
    return 0


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"-?\d+", text)]


def _splash_flops(kind: str, call: Instruction, computation: Computation) -> int:
    """Products of splash attention's blocks, which it does not declare; the blocks it skips do not count.

    Forward multiplies twice (logits, output), `dq` three times (logits again, their gradient, that of the
    queries), `dkv` four times. Blocks above the diagonal are skipped, and for a window the grid is shrunk
    to as many blocks as one row of them needs.
    """
    mask, queries = (computation[name].arrays[0].dims for name in call.operands[1:3])
    *heads, length, width = queries
    across, narrow = max(mask[-2:]), min(mask[-2:])
    blocks = sum(min(number, narrow) for number in range(1, across + 1))
    products = {"fwd": 2, "dq": 3, "dkv": 4}[kind]
    return 2 * products * math.prod(heads) * blocks * (length // across) ** 2 * width


def _convolution_flops(conv: Instruction, computation: Computation) -> int:
    left, kernel = (computation[name].arrays[0].dims for name in conv.operands[:2])
    out = conv.arrays[0].dims
    left_labels, kernel_labels, out_labels = re.split("_|->", conv.attribute("dim_labels"))
    window = dict(re.findall(r"(\w+)=([\d_x\-]+)", conv.attribute("window")))
    spatial = sorted(label for label in kernel_labels if label.isdigit())

    def per_axis(name: str, default: str) -> list[str]:
        return window[name].split("x") if name in window else [default] * len(spatial)

    products = 1
    for i, label in enumerate(spatial):
        low = int(per_axis("pad", "0_0")[i].split("_")[0])
        stride, left_step, kernel_step = (
            int(per_axis(name, "1")[i]) for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        size, taps, positions = (
            dims[labels.index(label)]
            for dims, labels in ((left, left_labels), (kernel, kernel_labels), (out, out_labels))
        )
        products *= sum(
            0 <= at <= (size - 1) * left_step and at % left_step == 0
            for position in range(positions)
            for at in range(
                position * stride - low, position * stride - low + taps * kernel_step, kernel_step
            )
        )
    rows, inputs = left[left_labels.index("b")], kernel[kernel_labels.index("i")]
    outputs = out[out_labels.index("f")]
    groups = _numbers(conv.attribute("batch_group_count")) or [1]
    return 2 * products * rows * inputs * outputs // groups[0]


def flops(program: Program) -> int:
    """FLOPs of matrix products and convolutions in one call, per device, loops counted in full."""
    times, _ = runs(program)
    return sum(
        times.get(name, 0) * instruction_flops(instruction, computation)
        for name, computation in program.computations.items()
        for instruction in computation.values()
    )
