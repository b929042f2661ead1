"""One compiled trainer for all tests of the loop and its checkpoints."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from quecc_jax.config import CheckpointConfig, RunConfig, SourceConfig
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.train.step import Trainer
from tests.tiny import random_batch, run
from tests.train.runs import MOVING, trainer_on


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> RunConfig:
    """20 steps of 8 rows over 50 images with a question each, so that epochs end within batches."""
    root: Path = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(50):
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(root / f"{number}.png")
        turns = [("human", "<image>\nhow many dots"), ("gpt", str(number))]
        conversation = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": number, "image": f"{number}.png", "conversations": conversation})
    (root / "rows.json").write_text(json.dumps(rows))
    train_word_tokenizer(["how many dots"], root / "tokenizer")
    source = SourceConfig(kind="llava_json", path=str(root / "rows.json"), images=str(root))
    config = run(optimizer=MOVING, steps=20, log_every=1)
    data = dataclasses.replace(
        config.data, sources=(source,), tokenizer=str(root / "tokenizer"), template="short"
    )
    return dataclasses.replace(config, data=data, checkpoint=CheckpointConfig(every=4, keep=2))


@pytest.fixture(scope="session")
def trainer(base) -> Trainer:
    """`base` on one device, compiled; a subprocess finds the compiled form, see tests/conftest.py."""
    made = trainer_on(base)
    made.step(made.init(jax.random.key(0)), made.put(random_batch(base)))
    return made


@pytest.fixture
def config(base, tmp_path) -> RunConfig:
    """`base` in a directory of this test."""
    return dataclasses.replace(base, out=str(tmp_path / "run"))
