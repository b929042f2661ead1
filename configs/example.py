"""The trained model in `examples/`: the study's testbed, one model with decoder M for every V.

make example    python -m examples.make
"""

import dataclasses

from configs import study
from quecc_jax.config.compressors import exchanged
from quecc_jax.experiments.grid import Grid
from quecc_jax.experiments.testbed.grids import QUECC, image_cell, preparation

OUT = "runs/example"
RECIPE = dataclasses.replace(
    study.RECIPE,
    testbed=dataclasses.replace(study.RECIPE.testbed, tower_steps=5400),
    seeds=(0,),
    ablation_seeds=(),
    language_steps=4800,
    stage1_steps=800,
    stage2_steps=10000,
)
"""Twice the study's training, of the tower half as much again: these parts are made once, and an elastic model
learns four numbers of tokens."""


def grid() -> Grid:
    """Tower, tokenizer, three language models, and the model itself."""
    steps, cells = preparation(RECIPE, OUT)
    elastic = exchanged(QUECC, elastic=RECIPE.visual_tokens)
    model = image_cell(RECIPE, OUT, "model", RECIPE.decoders[1], elastic, seed=0)
    cells.append(dataclasses.replace(model, visual_tokens=RECIPE.visual_tokens))
    return Grid("example", OUT, tuple(cells), tuple(steps), RECIPE.testbed, RECIPE.visual_tokens)
