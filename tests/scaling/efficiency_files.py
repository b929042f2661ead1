"""Files of efficiencies as the serving benchmark writes them, with values of one's own."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from scaling.cost import PARTS

BATCHES, LENGTHS = (1, 4, 16), (49, 241)
H100: dict[str, Any] = {
    "name": "h100",
    "flops": 989e12,
    "bandwidth": 3350e9,
    "memory": 80 * 2.0**30,
    "source": "a data sheet",
}


def efficiency_record(
    share: Callable[[str, int, int], float],
    parts: Sequence[str] = PARTS,
    batches: Sequence[int] = BATCHES,
    lengths: Sequence[int] = LENGTHS,
) -> dict[str, Any]:
    """What a file holds; `share` is the efficiency of a part at a batch and a length."""
    rows = []
    for part, batch, length in itertools.product(parts, batches, lengths):
        at = {"part": part, "batch": batch, "length": length}
        ideal = 1e-5 * batch * length
        reached = share(part, batch, length)
        rows.append({**at, "seconds": ideal / reached, "ideal_seconds": ideal, "efficiency": reached})
    return {
        "format": "quecc_jax serving efficiency 1",
        "chip": dict(H100),
        "model": {"decoder": "smollm2-135m", "compressor": "quecc", "visual_tokens": 1, "dtype": "float32"},
        "rows": rows,
    }
