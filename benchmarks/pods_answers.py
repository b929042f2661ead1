"""Answering with LLaVA-1.5-7B on slices that are not here, compiled; writes a table of docs/pods.md.

Run: python -m benchmarks.pods_answers

Method: each row runs `python -m launch.compile_pod --program answer --quick`: the engine's programs for one image a
question, prompts of 64 tokens beside the visual ones, answers of 64. Memory, bytes and FLOPs are the compiled ones;
times are predicted from them and the chips' published peaks. Nothing ran on a TPU.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from benchmarks.compiled import ROOT, report_of
from benchmarks.markdown import put, table
from quecc_jax.aot.chips import GIB
from quecc_jax.aot.roofline import EFFICIENCY
from quecc_jax.errors import run_cli
from quecc_jax.paths import write_text

TOPOLOGIES = {
    "v5e-1": "v5e:1x1",
    "v5e-4": "v5e:2x2",
    "v5e-8": "v5e:2x4",
    "v5e-16": "v5e:4x4",
    "v6e-8": "v6e:2x4",
    "v5p-8": "v5p:2x2x1",
}
"""By the names that Google rents them by; v5p's count TensorCores, two per chip."""
COMPRESSED = {
    1: "--model.compressor.kernel 24 --model.compressor.stride 24",
    576: "--model.compressor.name none",
}
"""What makes so many visual tokens of CLIP-L/14 at 336 pixels."""


class Row(NamedTuple):
    """One line of the table."""

    slice: str
    tensor: int
    weights: str
    visual_tokens: int
    batch: int
    """0 is the most that fit."""

    @property
    def command(self) -> list[str]:
        """Its command line."""
        lengths = f"--batch-size {self.batch} --prompt-tokens 64 --max-new-tokens 64"
        mesh = f"--mesh.data -1 --mesh.fsdp 1 --mesh.tensor {self.tensor}"
        given = f"--weights {self.weights} {lengths} {mesh} {COMPRESSED[self.visual_tokens]}"
        topology = ["--topology", TOPOLOGIES[self.slice], "--program", "answer", "--quick"]
        config = "configs/llava_7b_stage2.py"
        return [
            "python",
            "-m",
            "launch.compile_pod",
            config,
            *topology,
            "--data.query-length",
            "64",
            *given.split(),
        ]


ROWS = (
    *(
        Row(slice_, tensor, weights, 1, 32)
        for slice_, tensor in (("v5e-4", 4), ("v5e-8", 8), ("v5e-16", 8), ("v6e-8", 8), ("v5p-8", 4))
        for weights in ("bfloat16", "int8")
    ),
    *(
        Row(slice_, tensor, weights, v, 0)
        for slice_, tensor, weights in (("v5e-1", 1, "int8"), ("v5e-8", 8, "bfloat16"), ("v5e-8", 8, "int8"))
        for v in (1, 576)
    ),
)
HEADINGS = (
    "on",
    "mesh",
    "weights",
    "V",
    "questions at once",
    "parameters",
    "cache",
    "needed, GiB",
    "first tokens, ms",
    "tokens/s",
    "received per token, MiB",
    "answers/s",
)


def main(work: Path = Path("runs/pods_answers"), most: int = len(ROWS)) -> None:
    """Compiles what is missing, then writes docs/pods_answers.json and the table.

    Args:
      work: directory of the rows' reports.
      most: rows that are compiled at most; the table names those that are left.
    """
    found, left = [], []
    for row in ROWS:
        name = f"{row.slice}-{row.tensor}-{row.weights}-v{row.visual_tokens}-{row.batch or 'most'}"
        if not (work / f"{name}.json").exists():
            if not most:
                left.append(name)
                continue
            most -= 1
            print(name, flush=True)
        one = report_of(work, name, row.command)
        found.append({**row._asdict(), "command": " ".join(row.command), **one})
    rest = [f"\nNot compiled yet: {', '.join(left)}."] if left else []
    text = "\n".join([table(HEADINGS, [_line(one) for one in found]), *rest])
    put(ROOT / "docs/pods.md", "answers", text)
    record = {"efficiency": EFFICIENCY, "rows": found}
    write_text(ROOT / "docs/pods_answers.json", json.dumps(record, indent=1) + "\n")


def _line(one: dict[str, Any]) -> list[str]:
    last = one["programs"][-1]
    batch, fits = one["asked"]["batch"], f"{one['needed'] / GIB:.1f} of {one['limit'] / GIB:.2f}"
    # The last program is of several tokens; its rate says how many.
    tokens = one["tokens_per_second"] * last["seconds"] / batch
    received = sum(use["bytes"] for use in last["collectives"]) / tokens / 2**20
    return [
        one["slice"],
        " x ".join(f"{axis} {size}" for axis, size in one["mesh"].items() if size > 1),
        one["weights"],
        str(one["visual_tokens"]),
        f"{batch}" if one["batch"] else f"{batch}, the most",
        f"{one['parameters'] / GIB:.2f}",
        f"{one['cache'] / GIB:.2f}",
        fits if one["fits"] else f"**{fits}**",
        f"{1e3 * one['first_token_seconds']:.0f}",
        f"{one['tokens_per_second']:,.0f}",
        f"{received:.1f}" if received else "",
        f"{one['answers_per_second']:.1f}",
    ]


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(main))
