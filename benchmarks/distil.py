"""A model with all its visual tokens teaches itself with V: what the teacher is worth, at the same steps.

Run: python -m benchmarks.distil              (`--seeds N`, `--out DIR`; started again, it does what is missing)
     python -m benchmarks.distil --smollm2    (`benchmarks.smollm2` says how its weights get there)

A teacher with decoder M and all 64 patches of the testbed's tower is trained from the tower and the language model of
examples/. Students start from it with a QueCC at V tokens that has learned nothing, and train for the same steps on
the same batches of the same questions: from the answers alone, or with a share of the loss from the teacher
(`train.distil`). Compressor and projector are trained, the decoder stays the teacher's. With SmolLM2-135M in M's place
the teacher's second stage trains adapters, which the students have merged into their decoder; it is shorter, and asks
about *single* alone.

Accuracy is the share of exact greedy answers to the test questions, which no training saw. A row's +- is the standard
deviation over seeds, of the compressor's start and of the order of data; the teacher, which all share, has one seed.
Differences are paired by seed, with the standard error of their mean.
"""

import dataclasses
import math
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
import tyro

from benchmarks.markdown import table
from benchmarks.smollm2 import on_smollm2
from quecc_jax.config import CompressorConfig, DistilConfig, NoneConfig
from quecc_jax.experiments import runner
from quecc_jax.experiments.grid import Cell, Grid, Step, at
from quecc_jax.experiments.results import Row
from quecc_jax.experiments.testbed.grids import Recipe, compressor, image_cell
from quecc_jax.experiments.testbed.settings import Testbed

WEIGHTS = (0.0, 0.5)
_MADE = "quecc_jax.experiments.testbed.steps"


class Setting(NamedTuple):
    """What is trained with which decoder."""

    out: str
    recipe: Recipe
    steps: int
    """Of a student."""
    visual_tokens: tuple[int, ...]
    kinds: tuple[str, ...]
    """Columns: a task, or a kind of its questions."""
    smollm2: bool = False

    def cell(self, name: str, compressor: CompressorConfig, seed: int) -> Cell:
        """A model of both stages."""
        made = image_cell(self.recipe, self.out, name, self.recipe.decoders[1], compressor, seed)
        return on_smollm2(made, ("single",), lora_rate=5e-4) if self.smollm2 else made


DECODER_M = Setting(
    "runs/distil",
    Recipe(
        testbed=Testbed(images=2000, test_images=200, start="examples"), stage1_steps=400, stage2_steps=1500
    ),
    600,
    (1, 4),
    ("single", "mosaic/cell", "mosaic/whole", "reading/cell", "reading/row"),
)
SMOLLM2 = Setting(
    "runs/distil_smollm2",
    Recipe(
        testbed=Testbed(images=2000, test_images=50, start="examples"),
        stage1_steps=40,
        stage2_steps=120,
        batch_size=8,
    ),
    120,
    (1,),
    ("single", "single/yes-no", "single/shape", "single/color"),
    smollm2=True,
)


class Student(NamedTuple):
    """One way to train a student."""

    visual_tokens: int
    weight: float

    def cell(self, setting: Setting, teacher: Cell, seed: int) -> Cell:
        """Its training from the teacher's run, and the teacher's test."""
        name = f"stage1-v{self.visual_tokens}-w{self.weight:g}-s{seed}"
        made = setting.cell(name, compressor(setting.recipe, self.visual_tokens), seed)
        first = made.runs[0]
        train = dataclasses.replace(first.train, steps=setting.steps, distil=DistilConfig(self.weight))
        run = dataclasses.replace(
            first, out=f"{setting.out}/cells/{name}/run", train=train, init_from=teacher.runs[-1].out
        )
        return dataclasses.replace(made, runs=(run,), needs=(teacher.name,), cost=20.0, keep=False)


def grid(setting: Setting, seeds: int) -> tuple[Grid, dict[str, tuple[Student, int]]]:
    """Teacher and students, and who each student is, with its seed, by name."""
    teacher = setting.cell("teacher", NoneConfig(), 0)
    teacher = dataclasses.replace(teacher, compressor="none", cost=100.0)
    students = {}
    cells = [teacher]
    for seed, v, weight in product(range(seeds), setting.visual_tokens, WEIGHTS):
        one = Student(v, weight)
        cells.append(one.cell(setting, teacher, seed))
        students[cells[-1].name] = (one, seed)
    steps = (
        Step("data", f"{_MADE}:make_data", cost=15.0),
        Step("tower", f"{_MADE}:make_tower", ("data",), 15.0),
    )
    return Grid(
        "distil", setting.out, tuple(cells), steps, setting.recipe.testbed, setting.visual_tokens
    ), students


def shares(rows: Iterable[Row], kinds: Iterable[str]) -> dict[str, float]:
    """Percent of a cell's questions with the right answer, by kind."""
    listed = list(rows)

    counts = {kind: right_and_asked(listed, kind) for kind in kinds}
    return {kind: 100 * right / asked for kind, (right, asked) in counts.items()}


def right_and_asked(rows: Iterable[Row], kind: str) -> tuple[int, int]:
    """Questions of a task, or of one kind as TASK/KIND, with the right answer, and all of them."""
    mine = [row for row in rows if kind in (row["task"], f"{row['task']}/{row['kind']}")]
    return sum(row["correct"] for row in mine), sum(row["n"] for row in mine)


def spread(values: Iterable[float], error: bool = False) -> str:
    """Mean, and of several standard deviation or the mean's standard error."""
    found = np.array(list(values))
    mean = f"{np.mean(found):{'+' if error else ''}.1f}"
    if len(found) == 1:
        return mean
    deviation = np.std(found, ddof=1) / (math.sqrt(len(found)) if error else 1)
    return f"{mean} ± {deviation:.1f}"


def main(seeds: int = 3, out: str = "", smollm2: bool = False) -> None:
    """Distillation against answers alone.

    Args:
      seeds: of each student.
      out: directory of the runs; runs/distil or runs/distil_smollm2 by default.
      smollm2: in front of SmolLM2-135M.
    """
    setting = SMOLLM2 if smollm2 else DECODER_M
    made, students = grid(setting, seeds)
    made = at(made, out) if out else made
    runner.check(runner.run_grid(made, parallel=True), made)
    results = runner.collect(made, "python -m benchmarks.distil")
    found = {
        cell.name: shares((row for row in results["rows"] if row["cell"] == cell.name), setting.kinds)
        for cell in made.cells
    }
    by_student: dict[Student, dict[int, dict[str, float]]] = {}
    for name, (student, seed) in students.items():
        by_student.setdefault(student, {})[seed] = found[name]
    lines = [[64, "teacher", *(f"{found['teacher'][kind]:.1f}" for kind in setting.kinds)]]
    for student in sorted(by_student):
        of_seeds = by_student[student]
        said = f"{student.weight:g}" if student.weight else "answers alone"
        cells = [spread(one[kind] for one in of_seeds.values()) for kind in setting.kinds]
        lines.append([student.visual_tokens, said, *cells])
        alone = by_student[student._replace(weight=0.0)]
        if student.weight:
            pairs = [
                [of_seeds[seed][kind] - alone[seed][kind] for seed in of_seeds] for kind in setting.kinds
            ]
            lines.append(["", "difference", *(spread(pair, error=True) for pair in pairs)])
    print(table(["V", "teacher's share", *(f"{kind}, %" for kind in setting.kinds)], lines))
    print(f"{seeds} seeds, {setting.steps} steps")


if __name__ == "__main__":
    tyro.cli(main)
