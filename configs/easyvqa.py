"""A small model on easy-VQA from its images, with the tower, tokenizer and language model in `examples/`.

python -m launch.train configs/easyvqa.py --train.steps 500
"""

import dataclasses

from configs import demo
from quecc_jax.config import DataConfig, MeshConfig, RunConfig, SourceConfig
from quecc_jax.config.io import load_config
from quecc_jax.experiments.testbed.grids import compressor, model, training

EXAMPLE = "examples/model"


def config() -> RunConfig:
    """Decoder M at V = 4, all parts trained but the tower."""
    vocabulary = load_config(f"{EXAMPLE}/config.json").model.decoder.vocab_size
    data = DataConfig(
        sources=(SourceConfig("easy_vqa"),),
        tokenizer=f"{EXAMPLE}/tokenizer",
        template="short",
        max_length=28,
        query_length=16,
        image_aspect="square",
    )
    recipe = demo.RECIPE
    decoder = next(one for one in recipe.decoders if one.name == "M")
    run = training(
        recipe,
        "runs/easyvqa",
        model(recipe, decoder, compressor(recipe, 4), vocabulary),
        data,
        2,
        500,
        5e-4,
        0,
        init_from="examples/language/M",
        tower_from=EXAMPLE,
    )
    return dataclasses.replace(run, mesh=MeshConfig(1, 1, 1))
