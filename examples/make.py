"""Makes what lies in this directory anew: `make example`, or `python -m examples.make`.

The grid of `configs/example.py` trains the parts; here they become runs of parameters alone in bfloat16, with
images and questions of the test split, and what the model scores on all of that.
"""

import dataclasses
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro
from PIL import Image

from configs import example
from quecc_jax.config import RunConfig, SourceConfig
from quecc_jax.data.sources.pool import read_pool
from quecc_jax.errors import program
from quecc_jax.evaluate.explain import explain
from quecc_jax.experiments import runner
from quecc_jax.experiments.grid import Grid, at
from quecc_jax.experiments.store import finished
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_engine, load_vlm
from quecc_jax.records import write_record
from quecc_jax.run_lock import run_lock
from quecc_jax.train.checkpoint import Tree, load_params, save_params

SHOWN = {"mosaic": 3, "reading": 1, "single": 1}
"""How many test images of each task come along."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains the example's parts, and writes them as the runs and images of `examples/`."""

    work: Path = Path("runs/example")
    """Directory for the training; started again, it goes on."""
    out: Path = Path("examples")
    """Directory for what is made."""


def write_parts(grid: Grid, out: Path) -> None:
    """Writes the model with its tower, and the language models that it and its sisters started from."""
    config, params = load_vlm(grid.cells[-1].runs[-1].out)
    _save(config, params, out / "model")
    for cell in grid.cells:
        if cell.part == "language models":
            config, params = load_params(cell.runs[-1].out)
            _save(config, {"decoder": params["decoder"]}, out / "language" / Path(cell.runs[-1].out).name)


def write_images(grid: Grid, out: Path) -> None:
    """Writes test images of each task, and questions.json with what is asked about them."""
    asked = []
    for task, count in SHOWN.items():
        pool = read_pool(f"{grid.out}/data/{task}-test")
        for number in range(count):
            Image.fromarray(pool.images[number]).save(out / f"{task}-{number + 1}.png", optimize=True)
        for row in pool.rows:
            if row["image"] < count:
                human, gpt = (turn["value"] for turn in row["conversations"])
                question = human.removeprefix("<image>").strip()
                told = {"image": f"{task}-{row['image'] + 1}.png", "kind": row["kind"]}
                asked.append({**told, "question": question, "answer": gpt})
    (out / "questions.json").write_text(json.dumps(asked, indent=1) + "\n")


def _save(config: RunConfig, params: Tree, run: Path) -> None:
    """A run of parameters alone, in half the bytes, that depends on no other file."""
    halves = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    data = dataclasses.replace(
        config.data,
        sources=(SourceConfig("easy_vqa"),),
        cached_features=False,
        image_aspect="square",
        tokenizer=os.path.relpath(config.data.tokenizer),
    )
    save_params(dataclasses.replace(config, out=str(run), data=data, init_from="", tower_from=""), halves)
    # Orbax notes this machine's path to it there, and reads it in buckets alone.
    (run / "checkpoints/0/commit_success.txt").unlink()


def write_scores(grid: Grid, out: Path) -> None:
    """Writes scores.json: right answers of the trained model to each kind of question at each V, in [0, 1]."""
    shares: dict[str, dict[str, float]] = {}
    for row in runner.rows_of(grid, finished(grid)):
        if row["cell"] == grid.cells[-1].name:
            kinds = shares.setdefault(f"{row['task']}/{row['kind']}".rstrip("/"), {})
            kinds[str(row["visual_tokens"])] = round(row["correct"] / row["n"], 4)
    write_record(out / "scores.json", {"machine": runner.machine(), "scores": shares})


def write_heat_maps(_grid: Grid, out: Path) -> None:
    """Draws where the one visual token of an image comes from, for two questions."""
    engine = load_engine(out / "model", visual_tokens=1)
    image = engine.image(out / "mosaic-1.png")
    first, second = (f"what color is the shape in row {n}, column {n}?" for n in (1, 2))
    explain(engine, Question(first, (image,)), second, Limits(max_new_tokens=5), out / "heat-maps.png")


def main() -> None:
    """Trains what is missing and writes it."""
    options = tyro.cli(Options, description=Options.__doc__)
    grid = at(example.grid(), str(options.work))
    with run_lock(grid.out):
        runner.check(runner.run_grid(grid, parallel=True), grid)
    options.out.mkdir(parents=True, exist_ok=True)
    for write in (write_parts, write_images, write_scores, write_heat_maps):
        write(grid, options.out)


if __name__ == "__main__":
    program(main)
