"""What a row of table 1 is expected to take on a slice: hours, dollars, and the disk. Nothing of it was measured.

Seconds of a step are what `launch.compile_pod` predicts from the compiled program (docs/pods.md, `python -m
benchmarks.pods`): rows of 2,048 positions, questions of up to 64 tokens. The second stage groups rows by length, and
short ones take less. Answers per second are those of docs/pods.md's table of answering at V = 1, with answers of 64
tokens, mostly more than a benchmark's; on slices that are not in it, copies of its mesh stand side by side.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from quecc_jax.aot.chips import price_of
from quecc_jax.aot.memory import train_memory
from quecc_jax.config import MeshConfig, RunConfig
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks import TASKS as EVERY
from quecc_jax.experiments.reproduce.downloads import Download
from quecc_jax.experiments.reproduce.steps import TASKS

MMBENCH_ROWS = 4377
"""Rows of MMBench dev, rotations included (huggingface.co/datasets/lmms-lab/MMBench_EN)."""


class Slice(NamedTuple):
    """A TPU slice, how its chips share the work, and how long that is predicted to take."""

    chip: str
    chips: int
    training: tuple[str, str]
    """Settings of the devices in both stages."""
    answering: str
    step_seconds: tuple[float, float]
    """Of both stages; V makes no difference that could be seen."""
    answers_per_second: float


SLICES = {
    "v5e-16": Slice(
        "v5e",
        16,
        ("--train.grad-accum-steps 8", "--train.grad-accum-steps 4"),
        "--mesh.data 2 --mesh.fsdp 1 --mesh.tensor 8",
        (9.047, 5.989),
        118.7,
    ),
    "v5e-64": Slice(
        "v5e",
        64,
        ("--train.grad-accum-steps 2", ""),
        "--mesh.data 8 --mesh.fsdp 1 --mesh.tensor 8",
        (2.262, 1.497),
        4 * 118.7,
    ),
    "v5e-256": Slice(
        "v5e",
        256,
        ("", "--mesh.tensor 2 --mesh.sequence-parallel"),
        "--mesh.data 32 --mesh.fsdp 1 --mesh.tensor 8",
        (0.5654, 0.3743),
        16 * 118.7,
    ),
    "v5p-64": Slice(
        "v5p",
        32,
        ("--train.grad-accum-steps 2 --model.remat none", "--model.remat none"),
        "--mesh.data 8 --mesh.fsdp 1 --mesh.tensor 4",
        (1.940, 1.359),
        8 * 149.6,
    ),
}
"""By the names that Google rents them by; v5p's count TensorCores, two a chip."""


def find_slice(name: str) -> Slice:
    """A slice by its name.

    Raises:
      UserError: nothing was compiled for it.
    """
    if name not in SLICES:
        raise UserError(
            f"--slice {name}: nothing was compiled for it; choose from {', '.join(SLICES)}, or leave it out and say "
            "with --stage1-settings, --stage2-settings and --answer-settings how the devices share the work"
        )
    return SLICES[name]


def questions() -> int:
    """How many questions the eight benchmarks ask."""
    return sum(EVERY[task].questions or MMBENCH_ROWS for task in TASKS)


def hours(slice_: Slice, runs: Sequence[RunConfig]) -> tuple[float, float, float]:
    """Hours of both stages and of the benchmarks."""
    one, two = (
        run.train.steps * seconds / 3600 for run, seconds in zip(runs, slice_.step_seconds, strict=True)
    )
    return one, two, questions() / slice_.answers_per_second / 3600


def estimate(name: str, runs: Sequence[RunConfig], price: float | None) -> str:
    """Hours and dollars on a slice, in a few lines."""
    slice_ = find_slice(name)
    parts = hours(slice_, runs)
    spent = sum(parts) * slice_.chips
    usd, source = price_of(slice_.chip, price)
    one, two, answers = parts
    return (
        f"on {name}, {slice_.chips} chips: stage 1 {one:.1f} h, stage 2 at most {two:.1f} h, benchmarks "
        f"{answers:.2f} h; {spent:,.0f} chip hours, ${spent * usd:,.0f} at ${usd:g} ({source})\n"
        "  predicted from compiled programs, nothing was measured (docs/pods.md); compiling, saving, reading data and "
        "waiting come on top"
    )


def disk(downloads: Sequence[Download], runs: Sequence[RunConfig]) -> tuple[float, float, float]:
    """10^9 bytes of archives and files, of what is unpacked from them, and of weights and checkpoints."""
    remotes = [one for download in downloads for one in download.remotes]
    packed = sum(one.gb for one in remotes)
    unpacked = sum(one.gb for one in remotes if one.into and not one.only)
    kept = 0.0
    for run in runs:
        memory = train_memory(dataclasses.replace(run, mesh=MeshConfig(1, 1, 1)), 1)
        # Gradients are as many numbers of float32 as are trained; a checkpoint is whole before an old one goes.
        each = memory.gradients + memory.slots
        kept += memory.parameters - memory.gradients + (run.checkpoint.keep + 1) * each
    # The import has the numbers of the files, in their types.
    return packed, unpacked, kept / 1e9 + sum(one.gb for one in remotes if one.path.startswith("weights/"))
