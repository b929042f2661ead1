"""The demo: three decoders x four visual token counts, one seed, minutes on two cores.

make demo            python -m launch.demo
make demo QUICK=1    python -m launch.demo --quick
"""

import dataclasses

from quecc_jax.experiments.grid import Grid
from quecc_jax.experiments.testbed.grids import Recipe, size_grid
from quecc_jax.experiments.testbed.settings import Testbed

RECIPE = Recipe()
QUICK = dataclasses.replace(
    RECIPE,
    testbed=Testbed(images=1000, test_images=40, documents=6000, tower_steps=150),
    visual_tokens=(1, 16),
    language_steps=100,
    stage1_steps=30,
    stage2_steps=120,
)


def grid() -> Grid:
    """The whole demo."""
    return size_grid(RECIPE, "runs/demo", "demo")


def quick() -> Grid:
    """The same shape of grid with a fraction of the training, to see every part work."""
    return size_grid(QUICK, "runs/quick", "quick")
