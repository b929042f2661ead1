"""Names, shapes and configs of small checkpoints, as the programs that own the formats wrote them.

`llava_tiny` and `clip_tiny` were written by the original QueCC code, the others by transformers
(tests/parity/test_names.py).
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from quecc_jax.convert.plan import Source

NAMES = Path(__file__).parents[1] / "golden" / "names.json"


@functools.cache
def _stored() -> str:
    return NAMES.read_text()


def load(case: str) -> dict[str, Any]:
    """{"config": config.json, "tensors": shapes by name} of one checkpoint, to be changed at will."""
    return json.loads(_stored())[case]


def source(case: str, **changes: Any) -> Source:
    """A checkpoint with some settings changed."""
    found = load(case)
    return Source(found["config"] | changes, {k: tuple(v) for k, v in found["tensors"].items()}, case)


def random_tensors(shapes: dict[str, tuple[int, ...]], dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random bits (no matter whether they are numbers) of each shape."""
    rng = np.random.default_rng(0)
    size = np.dtype(dtype).itemsize
    return {
        name: np.frombuffer(rng.bytes(size * int(np.prod(shape))), dtype).reshape(shape)
        for name, shape in shapes.items()
    }
