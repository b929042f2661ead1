"""The run that is killed: `python -m launch.train tests/soak/tiny_run.py --out DIR`, with data beside DIR."""

import dataclasses
import os
from pathlib import Path

from quecc_jax.config import CheckpointConfig, RunConfig, SourceConfig
from tests.tiny import run

DATA = "QUECC_SOAK_DATA"
"""The environment variable that says where the data is."""
STEPS = 120


def config() -> RunConfig:
    """A step takes milliseconds, a save as long as thirty of them."""
    data = Path(os.environ[DATA])
    source = SourceConfig(kind="llava_json", path=str(data / "rows.json"), images=str(data))
    tiny = run(steps=STEPS, log_every=1)
    described = dataclasses.replace(
        tiny.data, sources=(source,), tokenizer=str(data / "tokenizer"), template="short"
    )
    return dataclasses.replace(tiny, data=described, checkpoint=CheckpointConfig(every=10, keep=2))
