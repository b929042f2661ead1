"""Small runs whose decoders vLLM can run."""

import dataclasses
from pathlib import Path
from typing import Any

from quecc_jax.config import (
    DataConfig,
    DecoderConfig,
    LoraConfig,
    ModelConfig,
    QueccConfig,
    RunConfig,
    VisionConfig,
)
from quecc_jax.config.compressors import exchanged
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.train.checkpoint import save_params
from tests.tiny import random_like, random_params

QUESTIONS = ["what color is the shape?", "is it a circle or a square, and where?", "and now?"]
WORDS = (
    "red blue green triangle yes no left right above below one two three four five six seven eight nine ten"
)
SETTINGS: dict[str, dict[str, Any]] = {
    "quecc_plus": {"fusion_layers": 1},
    "llava_mini": {"fusion_layers": 1},
    "mqt": {"queries": 16, "elastic": (1, 2, 4)},
}
DECODER = DecoderConfig(width=64, depth=2, heads=2, kv_heads=1, mlp_width=96)
"""Its heads have 32 numbers, the fewest that vLLM's have."""


def put_run(
    folder: Path, compressor: str = "quecc", lora: LoraConfig = LoraConfig(), seed: int = 6, **decoder: Any
) -> Path:
    """A run of random weights that reads words, and makes four visual tokens of an image; decoders of one seed and
    shape are equal."""
    size = train_word_tokenizer([*QUESTIONS, WORDS], folder / "words")
    model = ModelConfig(
        vision=VisionConfig(
            image_size=24, patch_size=6, width=8, depth=2, heads=2, mlp_width=16, levels=(1, 2)
        ),
        compressor=exchanged(
            QueccConfig(kernel=2, stride=2, heads=2), compressor, **SETTINGS.get(compressor, {})
        ),
        decoder=dataclasses.replace(DECODER, vocab_size=size, max_positions=4096, **decoder),
        lora=lora,
        dtype="float32",
        remat="none",
    )
    data = DataConfig(
        tokenizer=str(folder / "words"), template="short", max_length=96, query_length=24, images_per_row=2
    )
    config = RunConfig(model=model, data=data, out=str(folder / "run"))
    params = random_params(config, seed=5)
    # The same decoder behind all compressors.
    save_params(config, params | {"decoder": random_like(params["decoder"], seed=seed)})
    return folder / "run"
