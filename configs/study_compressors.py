"""The comparison of compressors: one decoder, V = 1, 4, 16, three seeds; and the ladder at one token.

make study-compressors    python -m launch.compare_compressors
"""

import dataclasses

from quecc_jax.config import CompressorConfig, NoneConfig
from quecc_jax.config.compressors import exchanged, named
from quecc_jax.experiments.grid import Cell, Grid
from quecc_jax.experiments.testbed.grids import Decoder, Recipe, compressor_cells, compressor_grid
from quecc_jax.experiments.testbed.settings import Testbed

OWN = "QueCC-plus"
FUSED = named("quecc_plus", fusion_layers=1)
BARE = named("quecc_plus", fusion_layers=0)

RIVALS = {
    "QueCC": named("quecc"),
    "TokenPacker": named("tokenpacker"),
    # One layer of two, where the original has 4 of 32: less costs it its point, more would not be small.
    "LLaVA-Mini": named("llava_mini", fusion_layers=1),
    "PruMerge": named("prumerge"),
    "PruMerge+": named("prumerge_plus"),
    "resampler": named("resampler"),
    "convolution": named("conv"),
    "average pooling": named("avgpool"),
}
LADDER = {
    "+ registers": exchanged(BARE, registers=True),
    "+ a second round": exchanged(BARE, rounds=2),
    "+ memory of 16": exchanged(FUSED, memory=16),
}
"""What was tried on the way to QueCC-plus, which is QueCC and a memory of 4."""
ELASTIC = {"M3": named("m3"), "MQT": named("mqt", queries=16)}
"""One set of weights serves every V, as they were made for."""


RECIPE = Recipe(
    # The tower also keeps what PruMerge reads.
    testbed=Testbed(
        vision=dataclasses.replace(Testbed().vision, keep_attention=True), test_images=300, tower_steps=2400
    ),
    decoders=(Decoder("M", 64, 2),),
    visual_tokens=(1, 4, 16),
    seeds=(0, 1, 2),
    language_steps=1600,
    stage1_steps=300,
    stage2_steps=2500,
)
"""The study's decoder M and its data."""
QUICK = dataclasses.replace(
    RECIPE,
    testbed=dataclasses.replace(RECIPE.testbed, images=200, test_images=20, documents=1000, tower_steps=20),
    visual_tokens=(1,),
    seeds=(0,),
    language_steps=20,
    stage1_steps=4,
    stage2_steps=10,
)


def grid(recipe: Recipe = RECIPE) -> Grid:
    """The whole comparison."""
    out, counts = "runs/compressors", recipe.visual_tokens

    def cells(
        label: str, part: str, config: CompressorConfig, *counts: int, elastic: bool = False
    ) -> list[Cell]:
        return compressor_cells(recipe, out, label, part, config, counts, elastic)

    made = [c for label, config in RIVALS.items() for c in cells(label, "comparison", config, *counts)]
    for label, config in ELASTIC.items():
        made += cells(label, "comparison", config, *counts, elastic=True)
    made += cells("QueCC, elastic", "elastic", RIVALS["QueCC"], *counts, elastic=True)
    made += cells(OWN, "comparison", FUSED, 1)
    for label, config in LADDER.items():
        made += cells(label, "ladder", config, 1)
    made += cells("no compressor", "comparison", NoneConfig())
    return compressor_grid(recipe, out, made, OWN)


def quick() -> Grid:
    """A few steps of every run at one token, to see every part work."""
    return grid(QUICK)
