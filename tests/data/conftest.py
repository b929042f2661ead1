"""A word tokenizer, a small model's sizes, and one small pool of each task and split."""

import dataclasses
from typing import Any

import pytest

from quecc_jax.config import DataConfig, ModelConfig, QueccConfig, SourceConfig
from quecc_jax.data.text.tokenizer import SPECIALS, load_tokenizer
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.experiments.testbed.corpus import write_corpus
from tests.tiny import MODEL


@pytest.fixture(scope="session")
def pools(tmp_path_factory):
    """{(task, split): pool} of 24-pixel images."""
    root = tmp_path_factory.mktemp("pools")
    sizes: dict[Any, tuple[int, int]] = {"single": (60, 0), "mosaic": (50, 6), "reading": (40, 6)}
    splits: tuple[Any, ...] = ("train", "test")
    return {
        (task, split): build_pool(task, split, root / f"{task}-{split}", 24, *sizes[task], seed=3)
        for task in sizes
        for split in splits
    }


@pytest.fixture(scope="session")
def text_pool(pools, tmp_path_factory):
    """Documents about the training pools, two to a row."""
    trains = [pool for (_, split), pool in pools.items() if split == "train"]
    return write_corpus(trains, tmp_path_factory.mktemp("text") / "pool", 0, SPECIALS[2])


@pytest.fixture(scope="session")
def tokenizer(text_pool, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer") / "words"
    extra = ["Look at this image. And that one: good, bad? red green blue one two three"]
    train_word_tokenizer(
        [turn["value"] for row in text_pool.rows for turn in row["conversations"]] + extra, directory
    )
    return load_tokenizer(directory)


@pytest.fixture(scope="session")
def model():
    """24-pixel images of 4 x 4 patches, V = 4 visual tokens."""
    vision = dataclasses.replace(MODEL.vision, image_size=24, patch_size=6, width=8, mlp_width=16)
    return ModelConfig(vision=vision, compressor=QueccConfig(kernel=2, stride=2, heads=2))


@pytest.fixture
def settings(pools, tokenizer):
    """Makes a DataConfig over some of the pools."""

    def make(*names, weights=None, **more):
        sources = tuple(
            SourceConfig(kind="pool", path=str(pools[name].directory), weight=weight)
            for name, weight in zip(names, weights or [None] * len(names), strict=True)
        )
        return DataConfig(
            **{
                "sources": sources,
                "tokenizer": tokenizer.directory,
                "template": "short",
                "max_length": 48,
                "query_length": 24,
                **more,
            }
        )

    return make
