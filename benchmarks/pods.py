"""Compiles every pod configuration with the real TPU compiler, and writes docs/pods.md and docs/pods.json.

Run: python -m benchmarks.pods [--only REGEX] [--list]

Method: each row runs `python -m launch.compile_pod` in a process of its own, with the config, topology and
settings of `ROWS`, and keeps its report in --work as one JSON file; rows that have one are not compiled
again. Nothing runs on a TPU: memory, FLOPs and collectives are the compiled program's, times are predicted
from them and the chips' published peaks. Half a minute per row on two cores, about 2.5 GiB of memory.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from benchmarks.compiled import ROOT, report_of
from benchmarks.markdown import put, table
from quecc_jax.aot.chips import GIB
from quecc_jax.aot.roofline import EFFICIENCY
from quecc_jax.commands.options import parse_run
from quecc_jax.config.io import to_dict
from quecc_jax.errors import run_cli
from quecc_jax.paths import write_text
from quecc_jax.progress import bars

SLICES = {
    "v5e-16": "v5e:4x4",
    "v5e-64": "v5e:8x8",
    "v5e-256": "v5e:16x16",
    "v5p-64": "v5p:2x4x4",
    "v6e-64": "v6e:8x8",
    "2 x v5e-64": "2*v5e:8x8",
}
"""Topologies by the names that Google rents them by. v5p's count TensorCores, two per chip."""

SETTINGS: dict[tuple[str, int, str], str] = {
    ("7b", 2, "v5e-16"): "--train.grad_accum_steps 4",
    ("7b", 2, "v5e-64"): "",
    ("7b", 2, "v5e-256"): "--mesh.tensor 2 --mesh.sequence-parallel",
    ("7b", 2, "v5p-64"): "--model.remat none",
    ("7b", 1, "v5e-16"): "--train.grad_accum_steps 8",
    ("7b", 1, "v5e-64"): "--train.grad_accum_steps 2",
    ("7b", 1, "v5e-256"): "",
    ("7b", 1, "v5p-64"): "--train.grad_accum_steps 2 --model.remat none",
    ("13b", 2, "v5e-64"): "",
    ("13b", 2, "v5p-64"): "--train.grad_accum_steps 2 --model.remat none",
    ("13b", 1, "v5e-64"): "--train.grad_accum_steps 2",
    ("13b", 1, "v5p-64"): "--train.grad_accum_steps 4 --model.remat none",
    ("qwen 0.5b", 2, "v5e-64"): "",
    ("qwen 1.8b", 2, "v5e-64"): "",
    ("qwen 4b", 2, "v5e-64"): "",
    ("qwen 7b", 2, "v5e-64"): "--train.loss-chunk 256",
    ("qwen 14b", 2, "v5e-64"): "--train.loss-chunk 256",
    ("7b", 2, "2 x v5e-64"): "--mesh.data 2",
    ("qwen3 8b", 2, "v5e-64"): "--train.loss-chunk 256",
    ("qwen3 8b", 2, "v5p-64"): "--model.remat none --train.grad-accum-steps 2",
    ("qwen3 8b", 2, "v6e-64"): "",
    (
        "qwen3 32b",
        2,
        "v5e-64",
    ): "--mesh.tensor 2 --mesh.sequence-parallel --train.loss-chunk 256 --train.grad-accum-steps 4",
    ("qwen3 32b", 2, "v5p-64"): "",
    ("qwen3 32b", 2, "v6e-64"): "",
}
"""Mesh, rematerialisation and accumulation by model, stage and slice. Where nothing is said, the mesh is fsdp over all
chips and every layer is recomputed."""

ROWS = {
    1: "--data.batching pad --train.batch-size 256 --train.steps 2181",
    2: "--data.batching grouped --train.batch-size 128 --train.steps 5198",
}
"""By stage: an epoch with a conversation in each row, which configs pack by default."""


class Row(NamedTuple):
    """One line of the table."""

    model: str
    stage: int
    visual_tokens: int
    slice: str

    @property
    def name(self) -> str:
        """File name of its report."""
        return re.sub(r"\W+", "-", f"{self.model}-stage{self.stage}-v{self.visual_tokens}-{self.slice}")

    @property
    def config(self) -> str:
        """Its config file."""
        family, _, size = self.model.rpartition(" ")
        return (
            f"configs/{family}_stage{self.stage}.py:{size}"
            if family
            else f"configs/llava_{size}_stage{self.stage}.py"
        )

    @property
    def settings(self) -> list[str]:
        """What the command line overrides."""
        stride = str({1: 24, 4: 12, 16: 6, 36: 4}[self.visual_tokens])
        geometry = ["--model.compressor.kernel", stride, "--model.compressor.stride", stride]
        # One program a row: questions of up to 64 tokens, which is what a batch of LLaVA's data needs.
        shape = [*geometry, "--data.query-length", "64", *ROWS[self.stage].split()]
        return SETTINGS[self.model, self.stage, self.slice].split() + shape


def rows() -> list[Row]:
    """All rows; each slice is seen once before V varies, since V hardly changes the program."""
    found = []
    for visual_tokens in (16, 1, 4, 36):
        for model, stage, slice_ in SETTINGS:
            if visual_tokens == 16 or (model == "7b" and slice_ != "2 x v5e-64"):
                found.append(Row(model, stage, visual_tokens, slice_))
    return found


def main(
    work: Path = Path("runs/pods"), only: str = "", show: Annotated[bool, tyro.conf.arg(name="list")] = False
) -> None:
    """Compiles what is missing, then writes the table of what is there.

    Args:
      work: directory of the rows' reports.
      only: compile only rows whose name matches this expression; write no table.
      show: print names and commands, and stop.
    """
    chosen = [row for row in rows() if re.search(only, row.name)]
    if show:
        for row in chosen:
            print(f"{row.name}: {' '.join(command(row))}")
        return
    missing = [row for row in chosen if not (work / f"{row.name}.json").exists()]
    with bars() as progress:
        task = progress.add_task("", total=len(missing))
        for row in missing:
            progress.update(task, description=row.name)
            report_of(work, row.name, command(row))
            progress.advance(task)
    if not only:
        write_table(work)


def command(row: Row) -> list[str]:
    """The command line of a row."""
    topology = ["--topology", SLICES[row.slice]]
    return ["python", "-m", "launch.compile_pod", row.config, *topology, *row.settings, "--quick"]


HEADINGS = (
    "model",
    "stage",
    "V",
    "slice",
    "mesh",
    "microbatches x rows",
    "remat",
    "arguments",
    "temporaries",
    "needed",
    "HLO / model FLOPs",
    "compute",
    "HBM",
    "ICI",
    "DCN",
    "step",
    "MFU",
    "run",
)


def write_table(work: Path) -> None:
    """Writes docs/pods.json, and the table in docs/pods.md between its two marks."""
    reports = [(row, report_of(work, row.name, [])) for row in rows() if (work / f"{row.name}.json").exists()]
    lines = [table(HEADINGS, [cells(row, one) for row, one in sorted(reports, key=_order)])]
    done = {row for row, _ in reports}
    if rest := [row.name for row in rows() if row not in done]:
        lines += ["", f"Not compiled for this table: {', '.join(rest)}."]
    put(ROOT / "docs/pods.md", "table", "\n".join(lines))
    found = [{**row._asdict(), "command": " ".join(command(row)), **one} for row, one in reports]
    record = {"efficiency": EFFICIENCY, "rows": found}
    write_text(ROOT / "docs/pods.json", json.dumps(record, indent=1) + "\n")
    bad = [f"{row.name}: {'; '.join(r['defects'])}" for row, r in reports if r["defects"]]
    bad += [f"{row.name} does not fit" for row, r in reports if not r["fits"]]
    print("\n".join([f"{len(reports)} of {len(rows())} rows in docs/pods.md", *bad]))


def _order(item: tuple[Row, Any]) -> tuple[Any, ...]:
    row = item[0]
    places = list(SETTINGS)
    return places.index((row.model, row.stage, row.slice)), row.visual_tokens


def cells(row: Row, report: dict[str, Any]) -> list[str]:
    """One row of the table, in the order of HEADINGS."""
    config = to_dict(parse_run([str(ROOT / row.config), *row.settings], "pods"))
    mesh = " x ".join(f"{axis} {n}" for axis, n in report["mesh"].items() if n > 1)
    mesh += ", sequence over tensor" if config["mesh"]["sequence_parallel"] else ""
    memory, bounds = report["memory"], report["bounds"]
    seconds = [f"{bounds[name]:.2f}" if bounds[name] else "" for name in ("compute", "hbm", "ici", "dcn")]
    fits = f"{report['needed'] / GIB:.1f} of {report['limit'] / GIB:.2f}"
    return [
        row.model,
        str(row.stage),
        str(row.visual_tokens),
        row.slice,
        mesh,
        f"{config['train']['grad_accum_steps']} x {report['rows_per_chip']:g}",
        config["model"]["remat"],
        f"{memory['arguments'] / GIB:.2f}",
        f"{memory['temporaries'] / GIB:.2f}",
        fits if report["fits"] else f"**{fits}**",
        f"{report['flops_ratio']:.3f}",
        *seconds,
        f"{report['step_seconds']:.2f}",
        f"{report['mfu']:.0%}",
        f"{report['run_hours']:.1f} h",
    ]


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(main))
