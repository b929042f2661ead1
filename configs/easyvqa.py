"""A small model on easy-VQA from its images, with the tower, tokenizer and decoder of a finished demo.

python -m launch.train configs/easyvqa.py --train.steps 500
"""

import dataclasses

from configs import demo
from quecc_jax.config import DataConfig, MeshConfig, RunConfig, SourceConfig
from quecc_jax.experiments.testbed.grids import compressor, model, trained_cell, training

DEMO = "runs/demo"


def config() -> RunConfig:
    """The middle decoder at V = 4, all parts trained but the tower."""
    start, vocabulary = trained_cell(DEMO, "M-v4-s0")
    data = DataConfig(
        sources=(SourceConfig("easy_vqa"),),
        tokenizer=f"{DEMO}/data/tokenizer",
        template="short",
        max_length=28,
        query_length=16,
        image_aspect="square",
    )
    recipe = demo.RECIPE
    run = training(
        recipe,
        "runs/easyvqa",
        model(recipe, recipe.decoders[1], compressor(recipe, 4), vocabulary),
        data,
        2,
        500,
        5e-4,
        0,
        init_from=start,
        tower_from=f"{DEMO}/tower",
    )
    return dataclasses.replace(run, mesh=MeshConfig(1, 1, 1))
