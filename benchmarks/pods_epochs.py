"""An epoch of LLaVA-1.5's second stage at three V, padded and packed, compiled; writes a table of docs/pods.md.

Run: python -m benchmarks.pods_epochs

Method: each row runs `python -m launch.compile_pod --quick` for stage 2 of 7B on v5e-16, two rows of 2,048 positions a
chip. The step's time is predicted from the compiled program and the chip's published peaks; nothing ran. An epoch is
665,298 conversations, one a row where rows are padded, PACKED of them where they are packed.
"""

import json
from pathlib import Path
from typing import NamedTuple

import tyro

from benchmarks.compiled import ROOT, report_of
from benchmarks.markdown import put, table
from benchmarks.pods_answers import COMPRESSED
from configs.llava import INSTRUCTIONS
from quecc_jax.aot.chips import GIB, find_chip
from quecc_jax.aot.roofline import EFFICIENCY
from quecc_jax.errors import run_cli
from quecc_jax.paths import write_text

PACKED = {1: 6.1, 36: 5.6, 576: 2.1}
"""Conversations of a packed row by V (`benchmarks/packing.py`)."""
ROWS_OF_STEP, CHIPS = 32, 16
GEOMETRY = COMPRESSED | {36: "--model.compressor.kernel 4 --model.compressor.stride 4"}


class Row(NamedTuple):
    """One line of the table."""

    visual_tokens: int
    batching: str

    @property
    def command(self) -> list[str]:
        """Its command line."""
        given = f"--data.batching {self.batching} --train.batch-size {ROWS_OF_STEP} --data.query-length 64"
        settings = f"{given} {GEOMETRY[self.visual_tokens]}".split()
        config = ["configs/llava_7b_stage2.py", "--topology", "v5e:4x4", "--quick"]
        return ["python", "-m", "launch.compile_pod", *config, *settings]


def main(work: Path = Path("runs/pods_epochs")) -> None:
    """Compiles what is missing, then writes docs/pods_epochs.json and the table.

    Args:
      work: directory of the rows' reports.
    """
    price = find_chip("v5e").usd_per_hour
    assert price is not None
    found, lines = [], []
    for batching in ("pad", "packed"):
        for v in PACKED:
            row = Row(v, batching)
            one = report_of(work, f"{batching}-v{v}", row.command)
            each = PACKED[v] if batching == "packed" else 1.0
            hours = INSTRUCTIONS / each / ROWS_OF_STEP * one["step_seconds"] / 3600
            found.append({**row._asdict(), "command": " ".join(row.command), "epoch_hours": hours, **one})
            lines.append(
                [
                    str(v),
                    "padded" if batching == "pad" else "packed",
                    f"{each:g}",
                    f"{one['needed'] / GIB:.1f} of {one['limit'] / GIB:.2f}",
                    f"{one['step_seconds']:.2f}",
                    f"{hours:.1f} h",
                    f"{hours * CHIPS:,.0f}",
                    f"${hours * CHIPS * price:,.0f}",
                ]
            )
    head = ("V", "rows", "conversations in each", "needed, GiB", "step, s", "epoch", "chip hours", "dollars")
    put(ROOT / "docs/pods.md", "epochs", table(head, lines))
    record = {"efficiency": EFFICIENCY, "usd_per_chip_hour": price, "rows": found}
    write_text(ROOT / "docs/pods_epochs.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(main))
