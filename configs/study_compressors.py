"""The comparison of compressors: one decoder, V = 1, 4, 16, three seeds.

    make study-compressors    python -m launch.comparison
"""

import dataclasses

from launch.comparison_plan import Comparison, Entry, on_grid
from launch.plan import DecoderSize, Plan
from quecc_jax.config import CompressorConfig

COUNTS = (1, 4, 16)
OWN = "ours"


def plan() -> Plan:
    """The study's decoder M and its data."""
    return Plan(
        decoders=(DecoderSize("M", 64, 2),), visual_tokens=COUNTS, seeds=(0, 1, 2), ablation_seeds=(),
        test_pictures=300, tower_steps=2400, language_steps=1600, stage1_steps=300, stage2_steps=4000,
    )  # fmt: skip


def entries(plan: Plan) -> tuple[Entry, ...]:
    """Every run."""
    rivals = (
        ("QueCC", CompressorConfig("quecc")),
        ("TokenPacker", CompressorConfig("tokenpacker")),
        ("average pooling", CompressorConfig("avgpool")),
    )
    made = []
    for label, config in rivals:
        made += on_grid(label, "comparison", config, plan, COUNTS)
    everything = CompressorConfig("none")
    made += [Entry("no compressor", "comparison", seed, (everything,), everything) for seed in plan.seeds]
    return tuple(made)


def comparison() -> Comparison:
    """The whole comparison."""
    return Comparison(plan(), entries(plan()), OWN)


def quick() -> Comparison:
    """A few steps of every run, to see every part work."""
    small = dataclasses.replace(
        plan(), seeds=(0,), pictures=200, test_pictures=20, documents=1000, tower_steps=20, language_steps=20,
        stage1_steps=4, stage2_steps=10,
    )  # fmt: skip
    return Comparison(small, entries(small), OWN)
