"""A model with a real one's structure and few channels, for the TPU compiler."""

from quecc_jax.config import (
    DataConfig,
    DecoderConfig,
    ModelConfig,
    OptimizerConfig,
    QueccConfig,
    RunConfig,
    TrainConfig,
    VisionConfig,
)


def config() -> RunConfig:
    """Stage 2 with eight layers of two 128-wide heads, on rows of 256 tokens."""
    return RunConfig(
        model=ModelConfig(
            vision=VisionConfig(image_size=56, width=128, depth=4, heads=2, mlp_width=256, levels=(1, 2, 3)),
            compressor=QueccConfig(kernel=2, stride=2, heads=2),
            decoder=DecoderConfig(vocab_size=2048, width=256, depth=8, heads=2, kv_heads=2, mlp_width=640),
        ),
        data=DataConfig(max_length=256, query_length=32),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        train=TrainConfig(stage=2, steps=1000, batch_size=8, loss_chunk=64),
    )
