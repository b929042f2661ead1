"""A tiny model on the images and rows that prepare.py has written: four steps, at V = 4."""

from quecc_jax.config import (
    CheckpointConfig,
    DataConfig,
    DecoderConfig,
    ModelConfig,
    QueccConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    VisionConfig,
)


def config() -> RunConfig:
    """The run."""
    return RunConfig(
        out="run",
        model=ModelConfig(
            vision=VisionConfig(
                image_size=16,
                patch_size=4,
                width=16,
                depth=2,
                heads=2,
                mlp_width=32,
                select_layer=-1,
                levels=(1, 2),
            ),
            compressor=QueccConfig(kernel=2, stride=2),
            decoder=DecoderConfig(vocab_size=128, width=32, depth=2, heads=4, kv_heads=2, mlp_width=48),
            dtype="float32",
            remat="none",
        ),
        data=DataConfig(
            sources=(SourceConfig("llava_json", "rows.json", images="images"),),
            tokenizer="words",
            template="short",
            max_length=32,
            query_length=16,
        ),
        train=TrainConfig(stage=2, steps=4, batch_size=8, log_every=1),
        checkpoint=CheckpointConfig(every=2),
    )
