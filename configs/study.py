"""The study: three decoders x four visual token counts at length, with three seeds.

make study    python -m launch.demo --study
"""

from quecc_jax.experiments.grid import Grid
from quecc_jax.experiments.testbed.grids import Recipe, seeded, size_grid
from quecc_jax.experiments.testbed.settings import Testbed

RECIPE = Recipe(
    testbed=Testbed(test_images=300, tower_steps=3600),
    seeds=(0, 1, 2),
    ablation_seeds=(0, 1, 2),
    language_steps=2400,
    stage1_steps=400,
    stage2_steps=5000,
)
"""Three seeds, also for the zeroed-query runs, and five times the demo's training."""


def grid(seeds: int = 0) -> Grid:
    """The whole study."""
    return size_grid(seeded(RECIPE, seeds), "runs/study", "study")
