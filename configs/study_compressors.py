"""The comparison of compressors: one decoder, V = 1, 4, 16, three seeds; and the ladder at one token.

make study-compressors    python -m launch.compare_compressors
"""

import dataclasses

from quecc_jax.config import CompressorConfig
from quecc_jax.experiments.comparison_plan import Comparison, Entry, at_every_v, on_grid
from quecc_jax.experiments.plan import DecoderSize, Plan

OWN = "QueCC-plus"
FUSED = CompressorConfig("quecc_plus", fusion_layers=1)
BARE = CompressorConfig("quecc_plus", fusion_layers=0)

RIVALS = {
    "QueCC": CompressorConfig("quecc"),
    "TokenPacker": CompressorConfig("tokenpacker"),
    # One layer of two, where the original has 4 of 32: less costs it its point, more would not be small.
    "LLaVA-Mini": CompressorConfig("llava_mini", fusion_layers=1),
    "PruMerge": CompressorConfig("prumerge"),
    "PruMerge+": CompressorConfig("prumerge_plus"),
    "resampler": CompressorConfig("resampler"),
    "convolution": CompressorConfig("conv"),
    "average pooling": CompressorConfig("avgpool"),
}
LADDER = {
    "+ registers": dataclasses.replace(BARE, registers=True),
    "+ a second round": dataclasses.replace(BARE, rounds=2),
    "+ memory of 16": dataclasses.replace(FUSED, memory=16),
}
"""What was tried on the way to QueCC-plus, which is QueCC and a memory of 4."""
ELASTIC = {"M3": CompressorConfig("m3"), "MQT": CompressorConfig("mqt", queries=16)}
"""One set of weights serves every V, as they were made for."""


def plan() -> Plan:
    """The study's decoder M and its data; the tower also keeps what PruMerge reads."""
    return Plan(
        vision=dataclasses.replace(Plan().vision, keep_attention=True),
        decoders=(DecoderSize("M", 64, 2),),
        visual_tokens=(1, 4, 16),
        seeds=(0, 1, 2),
        ablation_seeds=(),
        test_pictures=300,
        tower_steps=2400,
        language_steps=1600,
        stage1_steps=300,
        stage2_steps=2500,
    )


def entries(plan: Plan) -> tuple[Entry, ...]:
    """Every run, seed by seed: runs that differ in the seed alone share their programs, and should not
    compile them side by side."""
    made = []
    for label, config in RIVALS.items():
        made += on_grid(label, "comparison", config, plan, plan.visual_tokens)
    for label, config in ELASTIC.items():
        made += at_every_v(label, "comparison", config, plan, plan.visual_tokens)
    made += at_every_v("QueCC, elastic", "elastic", RIVALS["QueCC"], plan, plan.visual_tokens)
    made += on_grid(OWN, "comparison", FUSED, plan, (1,))
    for label, config in LADDER.items():
        made += on_grid(label, "ladder", config, plan, (1,))
    everything = CompressorConfig("none")
    made += [Entry("no compressor", "comparison", seed, (everything,), everything) for seed in plan.seeds]
    return tuple(sorted(made, key=lambda entry: entry.seed))


def comparison() -> Comparison:
    """The whole comparison."""
    return Comparison(plan(), entries(plan()), OWN)


def quick() -> Comparison:
    """A few steps of every run at one token, to see every part work."""
    small = dataclasses.replace(
        plan(),
        visual_tokens=(1,),
        seeds=(0,),
        pictures=200,
        test_pictures=20,
        documents=1000,
        tower_steps=20,
        language_steps=20,
        stage1_steps=4,
        stage2_steps=10,
    )
    return Comparison(small, entries(small), OWN)
