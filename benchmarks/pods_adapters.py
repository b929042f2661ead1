"""Adapters of a 7B decoder on few chips: compiled for TPUs, by arithmetic for GPUs; writes a table of docs/pods.md.

Run: python -m benchmarks.pods_adapters

Method: stage 2 of LLaVA-1.5-7B at V = 1 on packed rows of 2,048 positions, 128 of them a step. Rows of TPUs run
`python -m launch.compile_pod --quick`: the compiler's own memory and program, times predicted from them, nothing ran.
Those of one GPU, for which there is no compiler here, have the bytes of `quecc_jax.aot.memory`: state by arithmetic,
temporaries as estimated for compiled TPU programs; their step is the FLOPs of the TPU program at EFFICIENCY of the
GPU's peak, memory traffic left out. An epoch is 665,298 conversations in rows that hold PACKED of them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from benchmarks.compiled import ROOT, report_of
from benchmarks.markdown import put, table
from configs.llava import INSTRUCTIONS
from quecc_jax.aot.chips import GIB, find_chip
from quecc_jax.aot.memory import train_memory, verdict
from quecc_jax.aot.roofline import EFFICIENCY
from quecc_jax.commands.options import parse_run
from quecc_jax.errors import run_cli
from quecc_jax.paths import write_text

PACKED = 6.1
"""Conversations of a row at V = 1 (`benchmarks/packing.py`)."""
ROWS = 128
COMMON = (
    "--data.query-length 64 --model.compressor.kernel 24 --model.compressor.stride 24 "
    f"--data.batching packed --train.batch-size {ROWS}"
)
NAMES = {"qlora": "QLoRA, rank 64, nf4", "lora": "LoRA, rank 128, bfloat16"}
TOPOLOGIES = {"v5e-1": "v5e:1x1", "v5e-4": "v5e:2x2", "v5e-8": "v5e:2x4"}


class Row(NamedTuple):
    """One line of the table."""

    training: str
    device: str
    microbatches: int

    @property
    def settings(self) -> list[str]:
        """Config and what the command line overrides."""
        steps = ["--train.grad-accum-steps", str(self.microbatches)]
        return [f"configs/llava_7b_{self.training}_stage2.py", *steps, *COMMON.split()]

    @property
    def command(self) -> list[str]:
        """The command line of a TPU's row."""
        config, *rest = self.settings
        where = ["--topology", TOPOLOGIES[self.device]]
        return ["python", "-m", "launch.compile_pod", config, *where, *rest, "--quick"]


TPUS = (
    Row("qlora", "v5e-1", 128),
    Row("qlora", "v5e-1", 64),
    Row("lora", "v5e-1", 128),
    Row("qlora", "v5e-4", 32),
    Row("lora", "v5e-4", 32),
    Row("qlora", "v5e-8", 16),
    Row("lora", "v5e-8", 16),
)
GPUS = tuple(
    Row(training, gpu, microbatches)
    for gpu, microbatches in (("l4", 128), ("h100", 32))
    for training in ("qlora", "lora")
)
HEADINGS = (
    "trained",
    "on",
    "microbatches x rows",
    "arguments",
    "temporaries",
    "needed, GiB",
    "",
    "compute",
    "HBM",
    "ICI",
    "step",
    "epoch",
)


def main(work: Path = Path("runs/pods_adapters")) -> None:
    """Compiles what is missing, then writes docs/pods_adapters.json and the table.

    Args:
      work: directory of the rows' reports.
    """
    found = []
    for row in TPUS:
        one = report_of(work, f"{row.training}-{row.device}-{row.microbatches}", row.command)
        found.append({**row._asdict(), "command": " ".join(row.command), **one})
    flops = {one["training"]: one["hlo_flops"] for one in found if one["fits"]}
    lines = [_tpu(row, one) for row, one in zip(TPUS, found, strict=True)]
    lines += [_gpu(row, flops[row.training]) for row in GPUS]
    put(ROOT / "docs/pods.md", "adapters", table(HEADINGS, lines))
    record = {"efficiency": EFFICIENCY, "rows": found}
    write_text(ROOT / "docs/pods_adapters.json", json.dumps(record, indent=1) + "\n")


def _tpu(row: Row, report: dict[str, Any]) -> list[str]:
    memory, bounds = report["memory"], report["bounds"]
    held = memory["arguments"], memory["temporaries"], report["needed"]
    seconds = [bounds[name] for name in ("compute", "hbm", "ici")]
    # What the compiler does to a program that will not fit says nothing of its time.
    times = [*seconds, report["step_seconds"]] if report["fits"] else []
    found = "fits" if report["fits"] else "does not fit"
    return _line(row, report["chips"], held, report["limit"], times, found, "")


def _gpu(row: Row, flops: float) -> list[str]:
    memory, chip = train_memory(parse_run([*row.settings], "pods"), 1), find_chip(row.device)
    held = memory.state, memory.total - memory.state, memory.total
    compute = flops / chip.flops
    times = [compute, 0.0, 0.0, compute / EFFICIENCY]
    limit = chip.hbm_gib * GIB
    found = verdict(memory, limit)
    return _line(row, 1, held, limit, times if found == "fits" else [], found, "*")


def _line(
    row: Row,
    chips: int,
    held: tuple[float, float, float],
    limit: float,
    times: list[float],
    found: str,
    mark: str,
) -> list[str]:
    said = [f"{seconds:.1f}" if seconds else "" for seconds in times] or [""] * 4
    steps = INSTRUCTIONS / PACKED / ROWS
    return [
        NAMES[row.training],
        f"1 x {row.device}" if mark else row.device,
        f"{row.microbatches} x {ROWS / row.microbatches / chips:g}",
        *(f"{part / GIB:.2f}{mark}" for part in held[:2]),
        f"{held[2] / GIB:.1f}{mark} of {limit / GIB:g}",
        found if found == "fits" else f"**{found}**",
        *said,
        f"{times[-1] * steps / 3600:.1f} h" if times else "",
    ]


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(main))
