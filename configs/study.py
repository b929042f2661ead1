"""The study: the demo's grid at length, with three seeds.

make study    python -m launch.demo --study
"""

import dataclasses

from configs import demo
from quecc_jax.experiments.plan import Plan


def plan() -> Plan:
    """Three seeds, also for the zeroed-query runs, and twice the training."""
    return dataclasses.replace(
        demo.plan(),
        seeds=(0, 1, 2),
        ablation_seeds=(0, 1, 2),
        test_pictures=300,
        tower_steps=3600,
        language_steps=2400,
        stage1_steps=400,
        stage2_steps=5000,
    )
