"""A run on rows of up to three images each, with a decoder as small as can be."""

import dataclasses
from pathlib import Path

from quecc_jax.config import DecoderConfig, ModelConfig, RunConfig, SourceConfig
from quecc_jax.data.text.tokenizer import Tokenizer


def three_image_run(
    folder: Path, tokenizer: Tokenizer, model: ModelConfig, depth: int, max_length: int
) -> RunConfig:
    """On rows.json and the images of `folder`, with a decoder of `depth` layers behind the model's tower."""
    decoder = DecoderConfig(
        vocab_size=len(tokenizer), width=16, depth=depth, heads=2, kv_heads=2, mlp_width=32
    )
    data = dataclasses.replace(
        RunConfig().data,
        sources=(SourceConfig(path=str(folder / "rows.json"), images=str(folder)),),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=max_length,
        query_length=8,
        images_per_row=3,
        cache=str(folder / "cache"),
    )
    model = dataclasses.replace(model, decoder=decoder, dtype="float32", remat="none")
    return RunConfig(model=model, data=data)
