"""What `launch/pod_check.sh` runs on a pod: LLaVA-1.5's two stages at full size, on images that come with a package.

    python -m launch.train configs/pod_check.py:stage1
    python -m launch.compile_pod configs/pod_check.py:stage2 --topology v5e:4x4

Parameters are random numbers, and the words are those of `examples/`: what is learned does not matter here.
`:stage1_small` and `:stage2_small` rehearse on a CPU.
"""

import dataclasses

from configs import llava
from quecc_jax.config import (
    CheckpointConfig,
    DecoderConfig,
    ModelConfig,
    QueccConfig,
    RunConfig,
    SourceConfig,
    VisionConfig,
)

TOKENIZER = "examples/model/tokenizer"
STEPS, ROWS = 20, 32


def config(stage: str = "stage2") -> RunConfig:
    """Compressor and projector of 7B for `stage1`, the decoder too for `stage2`: 20 steps of 32 rows.

    Raises:
      ValueError: it is neither, with or without `_small` behind it.
    """
    both = {
        "stage1": llava.stage1("vicuna-7b", "runs/pod_check/stage1"),
        "stage2": llava.stage2("vicuna-7b", "runs/pod_check/stage2", "runs/pod_check/stage1"),
    }
    name = stage.removesuffix("_small")
    if name not in both:
        raise ValueError(f"{stage} is neither stage1 nor stage2")
    run = _checked(llava.one_each(both[name]))
    return _small(run) if name != stage else run


def _checked(stage: RunConfig) -> RunConfig:
    data = dataclasses.replace(
        stage.data,
        sources=(SourceConfig("easy_vqa"),),
        tokenizer=TOKENIZER,
        template="short",
        image_aspect="square",
        batching="pad",
        query_length=64,
        workers=0,
    )
    train = dataclasses.replace(stage.train, steps=STEPS, batch_size=ROWS, log_every=1)
    return dataclasses.replace(stage, data=data, train=train, checkpoint=CheckpointConfig(every=10, keep=1))


def _small(stage: RunConfig) -> RunConfig:
    model = ModelConfig(
        VisionConfig(
            image_size=56, width=64, depth=3, heads=2, mlp_width=128, levels=(1, 2), select_layer=-2
        ),
        QueccConfig(kernel=2, stride=2, heads=2),
        decoder=DecoderConfig(vocab_size=2048, width=64, depth=2, heads=2, kv_heads=2, mlp_width=128),
    )
    data = dataclasses.replace(stage.data, max_length=64, query_length=32)
    return dataclasses.replace(stage, model=model, data=data)
