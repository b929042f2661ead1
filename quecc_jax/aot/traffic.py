"""HBM traffic of a compiled program: bytes read from and written to main memory."""

from quecc_jax.aot.collectives import KINDS, collectives
from quecc_jax.aot.hlo import Array, Computation, Instruction, Program, called, fused, runs

FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "while",
        "conditional",
        "call",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "iota",
        "add-dependency",
    }
)
"""Opcodes that move nothing themselves."""
SLICES = ("slice", "dynamic-slice", "gather")
PASSING = ("bitcast", "reshape", "get-tuple-element", "tuple", "copy", "convert", "broadcast")
"""Inside a fusion: hands on what its reader makes of it."""


def traffic(program: Program) -> int:
    """Bytes read and written in one call, per device, loops counted in full.

    Every instruction outside fusions reads its operands and writes its result once; what lies in on-chip
    memory is free. A slice reads only what it takes and an update in place writes only what it changes,
    inside fusions too. A collective that is spread over fusions reads and writes once. Padding is left out.
    """
    times, inner = runs(program)[0], fused(program)
    spread = sum(c.times * (c.payload + c.operand) for c in collectives(program) if c.computation in inner)
    return spread + sum(
        times.get(name, 0) * instruction_traffic(program, instruction, computation)
        for name, computation in program.computations.items()
        if name not in inner
        for instruction in computation.values()
    )


def instruction_traffic(program: Program, instruction: Instruction, computation: Computation) -> int:
    """Bytes that one run of an instruction reads and writes."""
    kind = instruction.opcode
    if 'custom_call_target="AllocateBuffer"' in instruction.text:
        return 0
    # What an asynchronous run calls is a computation that counts by itself.
    if kind in FREE or kind == "async-start" or kind.endswith("-done") or kind.endswith("-update"):
        return 0
    body = _body(program, instruction)
    if body is not None:
        reads = sum(
            min(size, _read(program, body, _parameter(body, slot)))
            for slot, name in enumerate(instruction.operands)
            if (size := _hbm(computation[name].arrays))
        )
        return reads + _written(program, body, next(i for i in body.values() if i.root), instruction.arrays)
    operands = [_hbm(computation[name].arrays) for name in instruction.operands]
    result = _hbm(_results(instruction))
    if kind in SLICES or kind == "slice-start":
        taken = sum(a.bytes for a in _results(instruction)) if operands and operands[0] else 0
        return taken + result + sum(operands[1:])
    if kind in ("dynamic-update-slice", "scatter"):
        update = 1 if kind == "dynamic-update-slice" else len(operands) - 1
        size = sum(a.bytes for a in computation[instruction.operands[update]].arrays)
        return operands[update] + (size if result else 0)
    return sum(operands) + result


def _body(program: Program, instruction: Instruction) -> Computation | None:
    """What a fusion calls."""
    if instruction.opcode != "fusion":
        return None
    names = called(instruction)
    return program.computations[names[0]] if names else None


def _hbm(arrays: tuple[Array, ...]) -> int:
    return sum(a.bytes for a in arrays if a.space == 0)


def _results(instruction: Instruction) -> tuple[Array, ...]:
    """The arrays that an instruction makes. An asynchronous one's value holds its operand and marks too."""
    kind, arrays = instruction.opcode, instruction.arrays
    if not kind.endswith("-start") or len(arrays) < 2:
        return arrays
    return arrays[:1] if kind == "copy-start" else arrays[1:2]


def _read(program: Program, body: Computation, value: Instruction) -> int:
    """Bytes that a computation reads of one of its values: the slices taken if only slices are, else all."""
    whole, total = sum(a.bytes for a in value.arrays), 0
    for user in body.values():
        for slot, name in enumerate(user.operands):
            if name != value.name:
                continue
            inner = _body(program, user)
            if user.opcode in SLICES and slot == 0:
                total += sum(a.bytes for a in user.arrays)
            elif _kept(user, slot, value):
                continue
            elif inner is not None:
                total += _read(program, inner, _parameter(inner, slot))
            elif user.opcode in PASSING and not user.root:
                total += _read(program, body, user)
            else:
                return whole
    return min(total, whole)


def _kept(user: Instruction, slot: int, value: Instruction) -> bool:
    """Whether a use reads nothing: a collective (counted apart), an update in place, what is handed on."""
    updated = user.opcode in ("dynamic-update-slice", "scatter") and slot == 0
    return updated or user.opcode in KINDS or (user.opcode == "tuple" and value.opcode == "parameter")


def _parameter(body: Computation, slot: int) -> Instruction:
    return next(i for i in body.values() if i.opcode == "parameter" and i.literal == str(slot))


def _written(program: Program, body: Computation, value: Instruction, results: tuple[Array, ...]) -> int:
    """Bytes that a computation writes for its result: only the update where that is made in place."""
    if value.opcode == "tuple":
        parts = [body[name] for name in value.operands]
        if len(parts) == len(results):
            return sum(
                _written(program, body, part, (one,)) for part, one in zip(parts, results, strict=True)
            )
    if not _hbm(results):
        return 0
    if value.opcode in ("parameter", *KINDS):
        return 0
    if value.opcode in ("bitcast", "copy", "convert"):
        return min(_hbm(results), _written(program, body, body[value.operands[0]], results))
    if value.opcode == "dynamic-update-slice":
        return sum(a.bytes for a in body[value.operands[1]].arrays)
    inner = _body(program, value)
    if inner is not None:
        return _written(program, inner, next(i for i in inner.values() if i.root), results)
    return _hbm(results)
