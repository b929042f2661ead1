"""A harder testbed: finer grids of shapes, digits and emoji, relations, several wordings, conversations. Under trial.

make emoji           brings the pictures, once
python -m launch.sweep configs/harder.py
"""

import dataclasses

from quecc_jax.experiments.grid import Grid
from quecc_jax.experiments.testbed.grids import Decoder, Recipe, seeded, size_grid
from quecc_jax.experiments.testbed.settings import HARDER, Testbed

RECIPE = Recipe(
    testbed=Testbed(
        tasks=HARDER,
        images=3000,
        test_images=200,
        questions=9,
        documents=48000,
        # 12 x 12 patches of images that 2, 3, 4 and 5 cells divide.
        vision=dataclasses.replace(Testbed().vision, image_size=120, patch_size=10),
        tower_steps=4000,
        tower_batch=32,
        text_tokens=48,
        query_tokens=24,
        answer_tokens=6,
        document_tokens=112,
        turns="all",
    ),
    decoders=(Decoder("S", 32, 2), Decoder("M", 64, 2), Decoder("L", 96, 3), Decoder("XL", 128, 4)),
    visual_tokens=(1, 4, 16, 36),
    seeds=(0, 1, 2),
    language_steps=4000,
    stage1_steps=1000,
    stage2_steps=10000,
)
"""Not yet frozen: the choice of tasks and steps follows from pilots."""
PILOT = dataclasses.replace(
    RECIPE,
    testbed=dataclasses.replace(
        RECIPE.testbed,
        tasks=("shapes3", "digits4", "emoji3"),
        images=2000,
        test_images=120,
        documents=16000,
        # The 8 x 8 patches of the study, which take two fifths of the time.
        vision=Testbed().vision,
        tower_steps=1000,
        tower_batch=24,
    ),
    decoders=(Decoder("M", 64, 2), Decoder("L", 96, 3)),
    visual_tokens=(1, 4, 16),
    seeds=(0,),
    ablation_seeds=(),
    language_steps=500,
    stage1_steps=300,
    stage2_steps=900,
)
"""Half an hour of CPU time. Too little: every model answers as one that sees no image (docs/study/harder.md)."""


def grid(which: str = "", seeds: int = 0) -> Grid:
    """The whole grid, or `pilot`."""
    if which == "pilot":
        return size_grid(seeded(PILOT, seeds), "runs/harder-pilot", "harder-pilot")
    return size_grid(seeded(RECIPE, seeds), "runs/harder", "harder")
