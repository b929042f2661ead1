"""The study: the demo's grid at length, with three seeds.

    make study    python -m launch.demo --study
"""

import dataclasses

from configs import demo
from launch.plan import Plan


def plan() -> Plan:
    """Three seeds, also for the zeroed-query runs."""
    return dataclasses.replace(demo.plan(), seeds=(0, 1, 2), ablation_seeds=(0, 1, 2), test_pictures=300)
