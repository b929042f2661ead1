"""What each efficiency switch does to a training step, written to docs/efficiency.md.

Run: python -m benchmarks.efficiency [--only REGEX]

Method: every row of the first table compiles the training step of LLaVA-1.5-7B's decoder on text (stage 0),
rows of 2048 tokens, for four v5p chips by the TPU compiler (no TPU needed), with one setting changed against
the first row; two rows per chip and slice everywhere. Reports are kept in --work, and rows that have one are
not compiled again. Below it: the error of adding up gradients in bfloat16, against float64, and how long a
save holds the training loop up, both measured on this machine.
"""

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.markdown import table
from quecc_jax.aot.chips import GIB
from quecc_jax.aot.topology import parse_topology, prepare_environment
from quecc_jax.config import DataConfig, DecoderConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig
from quecc_jax.errors import run_cli
from quecc_jax.paths import write_text

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/efficiency.md"
TOPOLOGY = "v5p:2x2x1"
ROWS = 8
"""Per slice, on four chips."""

SETTINGS: dict[str, dict[str, Any]] = {
    "remat full": {},
    "remat attention": {"remat": "attention"},
    "remat dots": {"remat": "dots"},
    "remat none": {"remat": "none"},
    "attention by XLA": {"attention_kernel": "xla"},
    "2 layers per turn": {"scan_unroll": 2},
    "4 layers per turn": {"scan_unroll": 4},
    "gradients in float32": {"grad_reduce_dtype": "float32"},
    "accumulation 2": {"grad_accum_steps": 2},
    "accumulation 4": {"grad_accum_steps": 4},
}
"""What a row changes; all else, and the first row, is one slice with every layer recomputed."""


def run_config(grad_accum_steps: int = 1, **model: Any) -> RunConfig:
    """The run of a row."""
    return RunConfig(
        model=ModelConfig(**model),
        data=DataConfig(images_per_row=0),
        train=TrainConfig(stage=0, batch_size=ROWS * grad_accum_steps, grad_accum_steps=grad_accum_steps),
    )


def main(work: Path = Path("runs/efficiency"), only: str = "") -> None:
    """Compiles what is missing and measures the rest, then writes the page's tables.

    Args:
      work: directory of the rows' reports.
      only: compile only rows whose name matches this expression; write nothing.
    """
    chosen = [name for name in SETTINGS if re.search(only, name)]
    began = time.monotonic()
    prepare_environment()
    missing = [name for name in chosen if not report_file(work, name).exists()]
    for done, name in enumerate(missing):
        left = (time.monotonic() - began) / max(done, 1) * (len(missing) - done) / 60
        remaining = f", {left:.0f} min left" if done else ""
        print(f"{done + 1} of {len(missing)}: {name}{remaining}", flush=True)
        compile_row(name, work)
    if not only:
        fill("switches", switches(work))
        fill("sums", sums())
        fill("saving", saving())
        print(f"wrote {PAGE.relative_to(ROOT)}")


def report_file(work: Path, name: str) -> Path:
    """Where a row's report lies."""
    return work / f"{name.replace(' ', '-')}.json"


def compile_row(name: str, work: Path) -> None:
    """Leaves the row's report in `work`; a step that does not fit has one too."""
    # Imported here: JAX reads what `prepare_environment` says.
    from quecc_jax.aot.report import pod_reports

    report = pod_reports(run_config(**SETTINGS[name]), parse_topology(TOPOLOGY), print)[0]
    write_text(report_file(work, name), json.dumps(report.to_dict(), indent=1) + "\n")


def switches(work: Path) -> list[list[str]]:
    """The first table: what the compiler reports."""
    rows = [
        [
            "setting",
            "temporaries, GiB",
            "donated, GiB",
            "HLO / model FLOPs",
            "HBM traffic, GiB",
            "received from other chips, GiB",
            "predicted step, s",
            "compile, s",
        ]
    ]
    for name in SETTINGS:
        report = json.loads(report_file(work, name).read_text())
        memory = report["memory"]
        received = sum(one["bytes"] for one in report["exchanges"])
        rows.append(
            [
                name,
                f"{memory['temporaries'] / GIB:.2f}",
                f"{memory['aliased'] / GIB:.2f}",
                f"{report['flops_ratio']:.3f}",
                f"{report['traffic'] / GIB:.0f}",
                f"{received / GIB:.1f}",
                f"{report['step_seconds']:.2f}",
                f"{report['compile_seconds']:.0f}",
            ]
        )
    return rows


def sums(rows: int = 512, width: int = 256) -> list[list[str]]:
    """The second table: relative error of a weight gradient whose shares chips add up one after another.

    A share is the product of a chip's `rows` of unit-scale activations and slopes, rounded to bfloat16 as it
    leaves the matrix unit; every further addition rounds again, or not.
    """
    import ml_dtypes

    rng, table = np.random.default_rng(0), [["chips", "shares and sums in bfloat16", "in float32"]]
    for chips in (8, 32, 128):
        common = rng.normal(size=(width, width)) / width**0.5
        types = (np.float64, ml_dtypes.bfloat16, np.float32)
        exact, narrow, wide = (np.zeros((width, width), dtype) for dtype in types)
        for _ in range(chips):
            x = rng.normal(size=(rows, width))
            slope = x @ common + rng.normal(size=(rows, width))
            share = x.T @ slope
            exact += share
            narrow = narrow + share.astype(ml_dtypes.bfloat16)
            wide += share.astype(np.float32)
        errors = (np.linalg.norm(np.float64(y) - exact) / np.linalg.norm(exact) for y in (narrow, wide))
        table.append([str(chips), *(f"{error:.1e}" for error in errors)])
    return table


def saving() -> list[list[str]]:
    """The third table: seconds that a save of a decoder's state holds the loop up, and writes behind it."""
    import jax

    from quecc_jax.sharding import make_mesh
    from quecc_jax.train.resume import Checkpoints
    from quecc_jax.train.step import build_trainer

    class NoData:
        """A position in data that there are none of."""

        def get_state(self) -> dict[str, Any]:
            return {}

        def set_state(self, state: dict[str, Any]) -> None:
            del state

    decoder = DecoderConfig(vocab_size=8192, width=512, depth=12, heads=8, kv_heads=8, mlp_width=1408)
    with tempfile.TemporaryDirectory() as out:
        config = RunConfig(
            out=out,
            model=ModelConfig(decoder=decoder),
            train=TrainConfig(stage=0, steps=9, batch_size=1),
            data=DataConfig(images_per_row=0, max_length=128),
        )
        trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
        state = jax.block_until_ready(trainer.init(jax.random.key(0)))
        size = sum(x.nbytes for x in jax.tree.leaves(state)) / GIB
        held, written = [], []
        with Checkpoints(config) as checkpoints:
            checkpoints.begin(state)
            for step in (1, 2, 3):
                began = time.perf_counter()
                checkpoints.save(step, state, NoData(), last=True)
                saved = time.perf_counter()
                checkpoints.wait()
                held.append(saved - began)
                written.append(time.perf_counter() - began)
    heading = ["state, GiB", "loop waits, s", "written after, s"]
    return [heading, [f"{size:.2f}", f"{min(held):.2f}", f"{min(written):.2f}"]]


def fill(name: str, rows: list[list[str]]) -> None:
    """Puts a table between the page's two marks of that name."""
    before, rest = PAGE.read_text().split(f"<!-- {name} -->\n", 1)
    after = rest.split("<!-- end -->", 1)[1]
    write_text(PAGE, f"{before}<!-- {name} -->\n{table(rows[0], rows[1:])}\n<!-- end -->{after}")


if __name__ == "__main__":
    run_cli(lambda: tyro.cli(main))
