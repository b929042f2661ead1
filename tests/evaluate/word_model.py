"""A run with random parameters that answers in words."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from quecc_jax.config import DataConfig, DecoderConfig, QueccConfig, RunConfig
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.train.checkpoint import save_params
from tests import tiny


def word_run(root: Path, texts: Iterable[str], heads: int = 2) -> RunConfig:
    """Saves a tiny model whose vocabulary is the words of `texts`, below `root`.

    Args:
      heads: everywhere; they divide over so many devices, and so do the words, by some more of them.
    """
    texts = list(texts)
    words = train_word_tokenizer(texts, root / "words")
    more = [f"word{'abcdefgh'[number]}" for number in range(-words % heads)]
    words = train_word_tokenizer([*texts, *more], root / "words")
    width = 8 * heads
    decoder = DecoderConfig(
        vocab_size=words, width=width, depth=1, heads=heads, kv_heads=heads, mlp_width=2 * width
    )
    vision = dataclasses.replace(tiny.MODEL.vision, heads=heads)
    compressor = QueccConfig(kernel=2, stride=2, heads=max(4, heads))
    data = DataConfig(tokenizer=str(root / "words"), template="short", max_length=96, query_length=24)
    model = tiny.run(model={"decoder": decoder, "vision": vision, "compressor": compressor}).model
    config = RunConfig(out=str(root / "run"), model=model, data=data)
    save_params(config, tiny.random_params(config, seed=2))
    return config
