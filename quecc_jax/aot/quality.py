"""Defects of a compiled training step: wasted FLOPs, gathers and logits that a good step does not have."""

import math
from collections.abc import Iterator

from quecc_jax.aot.collectives import collectives
from quecc_jax.aot.hlo import Instruction, Program, fused, instruction_flops, runs
from quecc_jax.config import RunConfig
from quecc_jax.flops import attention_flops, decoder_params

MOST_FLOPS = {"none": 1.10, "dots": 1.25, "attention": 1.45, "full": 1.45}
"""HLO FLOPs over model FLOPs in stages that train the decoder, by `model.remat`."""
FROZEN_FLOPS = 1.6
"""The same where the decoder is frozen, as in stage 1: recomputing the forward pass weighs more where the backward
pass is short."""


def defects(config: RunConfig, mesh: dict[str, int], program: Program, flops_ratio: float) -> list[str]:
    """What is wrong with a compiled step, in sentences; empty for a good one.

    Checked: FLOPs against the model's; gradients of frozen weights; a whole stack of layers gathered at once,
    or parameters gathered in float32; float32 logits of all positions; a backward pass of the tower.
    """
    work, gathers = _work(config, mesh, program, flops_ratio), _gathers(config, program)
    return [*work, *gathers, *_logits(config, mesh, program)]


def _work(config: RunConfig, mesh: dict[str, int], program: Program, ratio: float) -> Iterator[str]:
    remat, decoder, frozen = config.model.remat, config.model.decoder, "decoder" not in config.train.trained
    most = FROZEN_FLOPS if frozen and remat in ("attention", "full") else MOST_FLOPS[remat]
    if ratio > most:
        yield f"HLO FLOPs are {ratio:.3f} of the model's, above {most}"
    if not config.trains_tower and backward_flops(program, "vision/"):
        yield "the tower is differentiated"
    if frozen:
        length, rows = config.data.max_length, config.train.batch_size
        inputs = 2 * decoder_params(decoder) * length + 2 * attention_flops(decoder, length, length)
        chips = math.prod(mesh.values())
        # Kernels compute scores again in the backward pass: half as much as its gradients.
        if backward_flops(program, "decoder/") * chips > 1.25 * inputs * rows:
            yield f"stage {config.train.stage} computes gradients of frozen decoder weights"


def backward_flops(program: Program, part: str) -> int:
    """FLOPs per device of the backward pass through a part of the model, recomputation left out."""
    times = runs(program)[0]
    return sum(
        times.get(name, 0) * instruction_flops(one, computation)
        for name, computation in program.computations.items()
        for one in computation.values()
        if "transpose(" in one.op_name and part in one.op_name and "rematted" not in one.op_name
    )


def _gathers(config: RunConfig, program: Program) -> Iterator[str]:
    decoder = config.model.decoder
    largest = max(decoder.width, decoder.heads * decoder.head_dim) * max(decoder.mlp_width, decoder.width)
    tables = {bytes_ * decoder.vocab_size * decoder.width for bytes_ in (2, 4)}
    for one in collectives(program):
        if one.kind == "all-gather" and one.payload > 4 * largest and one.payload not in tables:
            size = f"{one.payload / 2**20:.0f} MiB"
            yield f"{size} are gathered at once, more than a layer's matrix: {one.op_name}"
    for name, instruction in _instructions(program):
        if instruction.opcode.removesuffix("-start") == "all-gather":
            rough = [a for a in instruction.arrays if a.dtype == "f32" and math.prod(a.dims) > largest / 8]
            if rough and config.model.dtype == "bfloat16":
                yield f"float32 is gathered in {name}: {instruction.op_name}"


def _logits(config: RunConfig, mesh: dict[str, int], program: Program) -> Iterator[str]:
    decoder, length = config.model.decoder, config.data.max_length
    rows = config.train.batch_size // config.train.grad_accum_steps // (mesh["data"] * mesh["fsdp"])
    vocabulary = {decoder.vocab_size, decoder.vocab_size // mesh["tensor"]}
    inner = fused(program)
    for name, instruction in _instructions(program):
        if name in inner:
            continue
        for array in instruction.arrays:
            dims = [d for d in array.dims if d > 1]
            if array.dtype != "f32" or not vocabulary & set(dims) or decoder.width in dims:
                continue
            if math.prod(dims) >= rows * length * min(vocabulary):
                yield f"float32 logits of all positions exist: {array.dims} in {instruction.name}"


def _instructions(program: Program) -> Iterator[tuple[str, Instruction]]:
    for name, computation in program.computations.items():
        for instruction in computation.values():
            yield name, instruction
