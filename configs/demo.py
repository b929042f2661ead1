"""The demo: two decoders x three visual token counts, one seed, minutes on two cores.

make demo            python -m launch.demo
make demo QUICK=1    python -m launch.demo --quick
"""

import dataclasses

from quecc_jax.experiments.grid import Grid
from quecc_jax.experiments.testbed.grids import Decoder, Recipe, seeded, size_grid
from quecc_jax.experiments.testbed.settings import Testbed

RECIPE = Recipe(
    testbed=Testbed(negations=False, tower_steps=1500),
    # The study's narrower one learns to look up a cell late, with one seed and not with another.
    decoders=(Decoder("M", 64, 2), Decoder("L", 96, 2)),
    visual_tokens=(1, 4, 16),
    stage1_steps=800,
    language_steps=600,
    stage2_steps=1600,
)
"""Every model has learned what it learns of these tasks when it ends, or has not begun. A long stage 1 leaves little to
stage 2: at its end every model looks up a cell, at every V, and from four tokens on reads a row of digits, which one
seed learns 700 steps after another; none has begun to read it from one token, which some seeds learn within a few
thousand steps and others not within five. Questions with no and not are left out: M learns to turn their answers round
at about the 1,600th step, with one seed and not with another."""
QUICK = dataclasses.replace(
    RECIPE,
    testbed=Testbed(images=1500, test_images=60, negations=False, start="examples"),
    visual_tokens=(1, 4),
    stage1_steps=600,
    stage2_steps=400,
)
"""Tower and language models are the example's, which have never seen a visual token."""


def grid(seeds: int = 0) -> Grid:
    """The whole demo, from scratch."""
    return size_grid(seeded(RECIPE, seeds), "runs/demo", "demo")


def quick(seeds: int = 0) -> Grid:
    """A smaller grid that starts from what `examples/` holds."""
    return size_grid(seeded(QUICK, seeds), "runs/quick", "quick")
