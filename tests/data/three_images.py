"""A run on rows of up to three images each, with a decoder as small as can be."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from quecc_jax.config import DecoderConfig, ModelConfig, RunConfig, SourceConfig
from quecc_jax.data.text.tokenizer import Tokenizer

TALKS = [
    ((), ["one?", "red", "two?", "blue"]),
    ((0,), ["<image>\none?", "red", "two?", "blue"]),
    ((1, 2), ["<image> two <image>", "green"]),
    ((2,), ["three?", "red", "<image> one?", "blue"]),
    ((0, 1, 2), ["<image>\n<image>\nred or blue?", "red", "and <image> ?", "green"]),
    ((1,), ["<image>", "two"]),
]
"""The images of a conversation, by number, and its turns."""


def write_talks(folder: Path) -> Path:
    """TALKS as rows.json with their images, in a folder that is there."""
    rng = np.random.default_rng(0)
    for k in range(3):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / f"{k}.png")
    speakers = ("human", "gpt")
    rows = [
        {
            "image": [f"{k}.png" for k in images],
            "conversations": [{"from": speakers[n % 2], "value": text} for n, text in enumerate(said)],
        }
        for images, said in TALKS
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


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
