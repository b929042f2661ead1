"""QueCC before LLaVA-1.5 with Vicuna-7B, stage 1: compressor and projector on 558k captions.

    python -m launch.train configs/llava_7b_stage1.py --data.tokenizer vicuna-7b --init-from runs/vicuna-7b

V = 16 visual tokens; --model.compressor.kernel and --model.compressor.stride 24, 12, 6, 4 give V = 1,
4, 16, 36. Recipe: LLaVA-1.5's, as in the QueCC paper (arXiv 2411.03312).
"""

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

ROWS = 558_128


def config() -> RunConfig:
    """One epoch at global batch 256; the model's defaults are CLIP-L/14-336 and LLaMA-7B."""
    return RunConfig(
        out="runs/llava_7b_stage1",
        model=ModelConfig(VisionConfig(post_norm=True), CompressorConfig(kernel=6, stride=6)),
        data=DataConfig(
            sources=(SourceConfig(path="data/blip_laion_cc_sbu_558k.json", images="data/images"),),
            image_aspect="square",
            workers=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        train=TrainConfig(stage=1, steps=ROWS // 256, batch_size=256),
    )
