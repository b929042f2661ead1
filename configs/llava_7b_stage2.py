"""QueCC before LLaVA-1.5 with Vicuna-7B, stage 2: the decoder too, on 665k instructions.

python -m launch.train configs/llava_7b_stage2.py --data.tokenizer vicuna-7b
"""

import dataclasses

from configs import llava_7b_stage1
from quecc_jax.config import OptimizerConfig, RunConfig, SourceConfig, TrainConfig

ROWS = 665_298


def config() -> RunConfig:
    """One epoch at global batch 128, starting from stage 1."""
    base = llava_7b_stage1.config()
    source = SourceConfig(path="data/llava_v1_5_mix665k.json", images="data")
    return dataclasses.replace(
        base,
        out="runs/llava_7b_stage2",
        data=dataclasses.replace(base.data, sources=(source,), image_aspect="pad"),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        train=TrainConfig(stage=2, steps=ROWS // 128, batch_size=128),
        init_from=base.out,
    )
