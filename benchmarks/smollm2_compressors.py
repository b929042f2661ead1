"""Do compressors do for a pretrained model what they do for the tiny ones? SmolLM2-135M behind one visual token.

Run: python -m benchmarks.smollm2_compressors     (`--out DIR`; started again, it does what is missing)

`benchmarks.smollm2` says how its weights get there. QueCC, QueCC-plus and TokenPacker at V = 1 are trained on *single*
and *mosaic* together: stage 1, then stage 2 with adapters of the decoder. Their twin has SmolLM2 with the same adapters
read the questions alone, for as many steps of as many rows. Each is trained for `STEPS[0]` steps; where that is not
better than the twin by two standard errors of the difference on both tasks, anew for the next, which takes 45
minutes of a core at most. Accuracy is the share of exact greedy answers to questions about images that no training saw;
one seed.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import tyro

from benchmarks.distil import right_and_asked
from benchmarks.markdown import table
from benchmarks.smollm2 import on_smollm2
from quecc_jax.config import CompressorConfig
from quecc_jax.config.compressors import named
from quecc_jax.evaluate.score import standard_error
from quecc_jax.experiments import runner
from quecc_jax.experiments.grid import Cell, Grid
from quecc_jax.experiments.results import Row
from quecc_jax.experiments.testbed.grids import QUECC, Recipe, compressor, image_cell, preparation
from quecc_jax.experiments.testbed.settings import Task, Testbed
from quecc_jax.paths import write_text

TASKS: tuple[Task, ...] = ("single", "mosaic")
KINDS = ("single", "mosaic", "mosaic/cell", "mosaic/whole")
Name = Literal["QueCC", "QueCC-plus", "TokenPacker"]
COMPRESSORS: dict[Name, CompressorConfig] = {
    "QueCC": QUECC,
    "QueCC-plus": named("quecc_plus", heads=QUECC.heads),
    "TokenPacker": named("tokenpacker", heads=QUECC.heads),
}
STEPS = (150, 600)
TWIN = "question-only"


class Share(NamedTuple):
    """Right answers."""

    right: int
    asked: int

    @property
    def percent(self) -> float:
        return 100 * self.right / self.asked

    @property
    def error(self) -> float:
        """Standard error, in points."""
        return 100 * standard_error(self.right / self.asked, self.asked)

    def above(self, other: "Share") -> float:
        """By how many standard errors of the difference this is better."""
        return (self.percent - other.percent) / math.hypot(self.error, other.error)


def recipe(steps: int) -> Recipe:
    """The testbed of examples/, and so many steps of stage 2."""
    testbed = Testbed(images=2000, test_images=100, start="examples")
    return Recipe(testbed=testbed, stage1_steps=40, stage2_steps=steps, batch_size=8)


def grid(out: str, steps: int, names: list[Name]) -> Grid:
    """The twin and these compressors, trained for so many steps."""
    made = recipe(steps)
    prepared, cells = preparation(made, out)
    twin = dataclasses.replace(cells[-1], name=f"{TWIN}-{steps}", compressor=TWIN)
    twin = _moved(twin, f"{out}/cells/{twin.name}")
    chosen: list[Cell] = [twin]
    for name in names:
        cell = f"{name}-{steps}"
        small = compressor(made, 1, COMPRESSORS[name])
        one = image_cell(made, out, cell, made.decoders[1], small, 0)
        chosen.append(dataclasses.replace(one, compressor=name, cost=100.0))
    placed = tuple(on_smollm2(cell, TASKS, lora_rate=5e-4) for cell in chosen)
    return Grid("smollm2", out, placed, tuple(prepared), made.testbed, (1,))


def _moved(cell: Cell, run: str) -> Cell:
    return dataclasses.replace(cell, runs=(dataclasses.replace(cell.runs[0], out=run),))


def shares(rows: list[Row], cell: str) -> dict[str, Share]:
    """By task and kind of question."""
    mine = [row for row in rows if row["cell"] == cell]
    return {kind: Share(*right_and_asked(mine, kind)) for kind in KINDS}


def main(
    out: str = "runs/smollm2_compressors",
    compressors: tuple[Name, ...] = get_args(Name),
    step_counts: tuple[int, ...] = STEPS,
) -> None:
    """Trains what is missing, prints the table and writes it to OUT/table.md and OUT/table.json.

    Args:
      out: directory of the runs.
      compressors: those that are trained, beside the twin.
      step_counts: steps of stage 2, one training each.
    """
    left, lines, told = list(compressors), [], []
    for steps in step_counts:
        if not left:
            break
        made = grid(f"{out}/steps{steps}", steps, left)
        runner.check(runner.run_grid(made, parallel=True), made)
        rows = runner.collect(made, "python -m benchmarks.smollm2_compressors")["rows"]
        twin = shares(rows, f"{TWIN}-{steps}")
        for name in [TWIN, *left]:
            found = shares(rows, f"{name}-{steps}")
            ahead = {task: found[task].above(twin[task]) for task in TASKS}
            lines.append(
                [name, steps, *(f"{found[k].percent:.1f} ± {found[k].error:.1f}" for k in KINDS)]
                + ["" if name == TWIN else f"{ahead[task]:+.1f}" for task in TASKS]
            )
            told.append({"compressor": name, "steps": steps, **{k: [*found[k]] for k in KINDS}})
            if name in left and all(value > 2 for value in ahead.values()):
                left.remove(name)
    text = table(
        ["compressor", "steps", *(f"{k}, %" for k in KINDS), *(f"{t}: errors above the twin" for t in TASKS)],
        lines,
    )
    print(text)
    write_text(Path(out, "table.md"), text + "\n")
    write_text(Path(out, "table.json"), json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
