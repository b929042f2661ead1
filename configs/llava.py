"""LLaVA-1.5's two stages with QueCC, for any published decoder; other `llava_` and `qwen_` files are values.

Recipe: that of QueCC's scripts (arXiv 2411.03312; locuslab/llava-token-compression, scripts/v1_5/pretrain.sh
and finetune.sh), which are LLaVA-1.5's but for the template of stage 1: one epoch of 558k captions, then one
of 665k instructions, rows of 2048 tokens, CLIP-L/14 at 336 pixels. Where the values differ from the scripts':

- Rows are packed: as many conversations as fit share one of 2048 tokens, where the scripts have a conversation in
  each, in stage 2 of one modality and of similar length (--group_by_modality_length). What a conversation teaches is
  the same, which of them share a step is not. `one_each` has rows as the scripts do.
- A step has LLaVA-1.5's 256 and 128 conversations, or what comes near to it in whole packed rows. The scripts have 16
  rows a device, in stage 1 in each of 4 accumulated slices (--gradient_accumulation_steps 4), and do not say how many
  devices: 4 would give 256, 8 give 128. Slices (train.grad_accum_steps) change no result here; docs/pods.md has them
  for each TPU slice.
- V is 16; the scripts' example has kernel and stride 4, V = 36.
- optimizer.clip_norm is 1, transformers' default. The scripts' DeepSpeed settings name no clipping, and
  DeepSpeed then does none; --optimizer.clip-norm 1e9 does as they do.
- A checkpoint every 500 steps instead of one at the end, and 8 processes that read instead of 4: neither
  changes what is learned.
"""

import dataclasses
import math
from typing import Literal

from quecc_jax.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    QueccConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from quecc_jax.config.presets import decoder, tower

CAPTIONS, INSTRUCTIONS = 558_128, 665_298
"""Rows of the two data sets."""
CAPTIONS_PACKED, INSTRUCTIONS_PACKED = 23.4, 5.91
"""About how many of them share a packed row at V = 16: of instructions by `benchmarks/packing.py`; captions are taken
to have 70 tokens with their template."""
Template = Literal["v1", "qwen", "qwen3_no_think"]


def stage1(
    language_model: str,
    out: str,
    visual_tokens: int = 16,
    template: Template = "v1",
    vision_tower: str = "clip-l-14-336",
) -> RunConfig:
    """Compressor and projector on captions.

    The decoder reads them as conversations, as in QueCC's pretrain.sh (--version v1): system sentence,
    instruction, and the caption, which ends with EOS. LLaVA-1.5's own stage 1 is --data.template plain:
    image, caption, newline, and no word of the instruction. What the compressor is asked is the
    instruction ("Describe the image concisely.") under either. In the original it is so under v1 alone: its
    query stands between the text's first newline and the word ASSISTANT, and of a plain row, where both are
    missing, it makes an empty one.
    """
    vision = tower(vision_tower)
    stride = vision.grid // math.isqrt(visual_tokens)
    return RunConfig(
        out=out,
        model=ModelConfig(vision, QueccConfig(kernel=stride, stride=stride), decoder=decoder(language_model)),
        data=DataConfig(
            sources=(SourceConfig(path="data/blip_laion_cc_sbu_558k.json", images="data/images"),),
            template=template,
            image_aspect="square",
            batching="packed",
            text_per_image=64,
            workers=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=epoch(1, CAPTIONS, 256, 8, CAPTIONS_PACKED),
    )


def epoch(
    stage: Literal[1, 2], rows: int, conversations: int, batch_size: int, packed: float = 1.0
) -> TrainConfig:
    """One epoch, counted from the data by `launch.train`; steps and rows of a step, which `launch.compile_pod` takes,
    are about those of 8 chips."""
    steps = math.ceil(rows / packed / batch_size)
    return TrainConfig(
        stage=stage, steps=steps, epochs=1.0, batch_size=batch_size, conversations=conversations
    )


def one_each(stage: RunConfig) -> RunConfig:
    """A stage with a conversation in each row as the scripts have them, and with their numbers of steps and rows."""
    rows = {1: CAPTIONS, 2: INSTRUCTIONS}[stage.train.stage]
    size = stage.train.conversations
    steps = math.ceil(rows / size)
    batching: Literal["pad", "grouped"] = "pad" if stage.train.stage == 1 else "grouped"
    return dataclasses.replace(
        stage,
        data=dataclasses.replace(stage.data, batching=batching),
        train=dataclasses.replace(stage.train, steps=steps, epochs=0.0, batch_size=size, conversations=0),
    )


def stage2(
    language_model: str,
    out: str,
    init_from: str,
    visual_tokens: int = 16,
    template: Template = "v1",
    vision_tower: str = "clip-l-14-336",
) -> RunConfig:
    """The decoder too, on instructions."""
    base = stage1(language_model, out, visual_tokens, template, vision_tower)
    source = SourceConfig(path="data/llava_v1_5_mix665k.json", images="data")
    return dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, sources=(source,), image_aspect="pad", text_per_image=256),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        train=epoch(2, INSTRUCTIONS, 128, 24, INSTRUCTIONS_PACKED),
        init_from=init_from,
    )


def with_adapters(stage: RunConfig, out: str, rank: int = 128, alpha: float = 256.0) -> RunConfig:
    """A second stage whose decoder stays as it is under adapters of all its matrices.

    Values are those of LLaVA-1.5's finetune_lora.sh, whose other settings are finetune.sh's: adapters at ten
    times the rate of the whole decoder, compressor and projector at that rate.
    """
    lora = LoraConfig(rank=rank, alpha=alpha, dropout=0.05)
    return dataclasses.replace(
        stage,
        out=out,
        model=dataclasses.replace(stage.model, lora=lora),
        optimizer=OptimizerConfig(learning_rate=2e-4, projector_learning_rate=2e-5),
    )
