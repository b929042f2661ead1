"""The study: the demo's grid at length, with three seeds.

make study    python -m launch.demo --study
"""

import dataclasses

from configs import demo
from quecc_jax.experiments.grid import Grid
from quecc_jax.experiments.testbed.grids import size_grid
from quecc_jax.experiments.testbed.settings import Testbed

RECIPE = dataclasses.replace(
    demo.RECIPE,
    testbed=Testbed(test_images=300, tower_steps=3600),
    seeds=(0, 1, 2),
    ablation_seeds=(0, 1, 2),
    language_steps=2400,
    stage1_steps=400,
    stage2_steps=5000,
)
"""Three seeds, also for the zeroed-query runs, and twice the training."""


def grid() -> Grid:
    """The whole study."""
    return size_grid(RECIPE, "runs/study", "study")
