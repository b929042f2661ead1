"""A small model on easy-VQA from its images, with the tower, tokenizer and decoder of a finished demo.

python -m launch.train configs/easyvqa.py --train.steps 500
"""

import dataclasses
from pathlib import Path

from configs import demo
from quecc_jax.config import DataConfig, MeshConfig, RunConfig, SourceConfig
from quecc_jax.config.io import load_config
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.grids import compressor, model, training

DEMO = "runs/demo"


def config() -> RunConfig:
    """The middle decoder at V = 4, all parts trained but the tower."""
    start = f"{DEMO}/cells/M-v4-s0/stage2"
    if not Path(start, "config.json").exists():
        raise UserError(f"this starts from the tower, tokenizer and decoder in {DEMO}; run `make demo` first")
    vocabulary = load_config(f"{start}/config.json").model.decoder.vocab_size
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
