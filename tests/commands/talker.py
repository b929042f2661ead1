"""A model of random weights to talk to, and images to talk about."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quecc_jax.config import DataConfig, DecoderConfig, ModelConfig, QueccConfig, RunConfig, VisionConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.generate.engine import Engine
from tests.tiny import random_params

QUESTIONS = ["what color is the shape?", "is it a circle or a square, and where?", "and now?"]


def tiny_engine(folder: Path, name: str = "quecc", **compressor: Any) -> Engine:
    """It reads words, and makes four visual tokens of an image."""
    size = train_word_tokenizer([*QUESTIONS, "red blue green triangle yes no left right"], folder / "words")
    model = ModelConfig(
        vision=VisionConfig(
            image_size=24, patch_size=6, width=8, depth=2, heads=2, mlp_width=16, levels=(1, 2)
        ),
        compressor=exchanged(QueccConfig(kernel=2, stride=2, heads=2), name, **compressor),
        decoder=DecoderConfig(vocab_size=size, width=16, depth=1, heads=2, kv_heads=2, mlp_width=32),
        dtype="float32",
        remat="none",
    )
    data = DataConfig(
        tokenizer=str(folder / "words"), template="short", max_length=96, query_length=24, images_per_row=2
    )
    config = RunConfig(model=model, data=data)
    return Engine(config, random_params(config, seed=5), chunk=2)


def save_images(folder: Path) -> list[Path]:
    """Two of one colour that are not square, and one of noise."""
    for name, colour in (("red", "red"), ("a blue one", "blue")):
        Image.new("RGB", (40, 24), colour).save(folder / f"{name}.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)).save(folder / "noise.png")
    return [folder / "red.png", folder / "a blue one.png", folder / "noise.png"]
