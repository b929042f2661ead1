"""LLaVA-1.5's two stages with QueCC, for any published decoder; other `llava_` and `qwen_` files are values.

Recipe: LLaVA-1.5's, as in the QueCC paper (arXiv 2411.03312): one epoch of 558k captions at global batch
256, then one of 665k instructions at 128, rows of 2048 tokens, CLIP-L/14 at 336 pixels.
"""

import dataclasses
import math
from typing import Literal

from quecc_jax.config import (
    CompressorConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    VisionConfig,
)
from quecc_jax.presets import decoder

CAPTIONS, INSTRUCTIONS = 558_128, 665_298
"""Rows of the two data sets."""
GRID = 24
"""Patches along a side of the picture."""


def stage1(language_model: str, out: str, visual_tokens: int = 16) -> RunConfig:
    """Compressor and projector on captions."""
    stride = GRID // math.isqrt(visual_tokens)
    return RunConfig(
        out=out,
        model=ModelConfig(
            VisionConfig(post_norm=True),
            CompressorConfig(kernel=stride, stride=stride),
            decoder=decoder(language_model),
        ),
        data=DataConfig(
            sources=(SourceConfig(path="data/blip_laion_cc_sbu_558k.json", images="data/images"),),
            template="plain",
            image_aspect="square",
            workers=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(stage=1, steps=CAPTIONS // 256, batch_size=256),
    )


def stage2(
    language_model: str, out: str, init_from: str, visual_tokens: int = 16,
    template: Literal["v1", "qwen"] = "v1",
) -> RunConfig:  # fmt: skip
    """The decoder too, on instructions."""
    base = stage1(language_model, out, visual_tokens)
    source = SourceConfig(path="data/llava_v1_5_mix665k.json", images="data")
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, sources=(source,), template=template, image_aspect="pad"),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        train=TrainConfig(stage=2, steps=INSTRUCTIONS // 128, batch_size=128),
        init_from=init_from,
    )
