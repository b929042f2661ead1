"""A grid of two sizes x two V of the tiny model, and its data: questions about 24 images."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quecc_jax.config import CheckpointConfig, SourceConfig
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.experiments.grid import Grid, Test
from quecc_jax.experiments.llava_grid import Llm, llava_grid
from tests import tiny

DECODERS = {width: dataclasses.replace(tiny.MODEL.decoder, width=width) for width in (32, 64)}


def small_grid(out, *, steps: int = 4, **changes: Any) -> Grid:
    """The grid; its data lie below `out`'s parent. Args: `steps` of stage 2."""
    data = Path(out).parent / "data"
    source = SourceConfig(kind="llava_json", path=str(data / "rows.json"), images=str(data))
    stage = tiny.run(
        data={
            "sources": (source,),
            "tokenizer": str(data / "tokenizer"),
            "template": "short",
            "images_per_row": 1,
        },
        stage=1,
        steps=3,
        log_every=1,
    )
    stage = dataclasses.replace(stage, checkpoint=CheckpointConfig(every=0, keep=1))
    llms = tuple(Llm(f"w{w}", size_b=w / 1000, decoder=d) for w, d in DECODERS.items())
    settings = {
        "out": str(out),
        "stages": (
            stage,
            dataclasses.replace(stage, train=dataclasses.replace(stage.train, stage=2, steps=steps)),
        ),
        "llms": llms,
        "visual_tokens": (1, 4),
        "tests": (Test((source,), "dots", 3, batch_size=24),),
        "text_tokens": 20,
        "query_tokens": 6.0,
    }
    return llava_grid(**settings | changes)  # type: ignore[arg-type]


def write_data(data: Path) -> None:
    """Writes the images, the questions and their tokenizer."""
    rows, rng = [], np.random.default_rng(0)
    data.mkdir()
    for number in range(24):
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(data / f"{number}.png")
        turns = [("human", "<image>\nhow many dots"), ("gpt", str(number % 2))]
        conversation = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": number, "image": f"{number}.png", "conversations": conversation})
    (data / "rows.json").write_text(json.dumps(rows))
    train_word_tokenizer(["how many dots 0 1"], data / "tokenizer")


def write_config(folder: Path, **changes) -> Path:
    """A config file for `launch.sweep` in a folder, and the data beside its `out`."""
    write_data(folder / "data")
    file = folder / "small.py"
    file.write_text(
        "from tests.experiments.small_grid import small_grid\n\n\n"
        f"def grid():\n    return small_grid({str(folder / 'out')!r}, **{changes!r})\n"
    )
    return file
