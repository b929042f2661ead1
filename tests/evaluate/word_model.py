"""A run with random parameters that answers in words."""

from collections.abc import Iterable
from pathlib import Path

from quecc_jax.config import DataConfig, DecoderConfig, RunConfig
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.train.checkpoint import save_params
from tests import tiny


def word_run(root: Path, texts: Iterable[str]) -> RunConfig:
    """Saves a tiny model whose vocabulary is the words of `texts`, below `root`."""
    words = train_word_tokenizer(texts, root / "words")
    decoder = DecoderConfig(vocab_size=words, width=16, depth=1, heads=2, kv_heads=2, mlp_width=32)
    data = DataConfig(tokenizer=str(root / "words"), template="short", max_length=96, query_length=24)
    config = RunConfig(out=str(root / "run"), model=tiny.run(model={"decoder": decoder}).model, data=data)
    save_params(config, tiny.random_params(config, seed=2))
    return config
