"""One process of several that reads a run's parameters: `python -m tests.train.reader RUN DATA FSDP`.

Prints the bytes that it read while doing so, the least of LOADS times, and a checksum of each device's part.
"""

import json
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from quecc_jax.config import MeshConfig
from quecc_jax.distributed import joined
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import load_params

SHAPES = {"rows": (1024, 8192), "columns": (8192, 1024), "small": (64,)}
SPECS = {"rows": ("fsdp",), "columns": (None, "fsdp"), "small": ()}


LOADS = 6
"""The first reads modules too; in others orbax merges reads that come within a millisecond, and what lies between."""


def bytes_read() -> int:
    """By this process since its start."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    run, data, fsdp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with joined():
        mesh = make_mesh(MeshConfig(data, fsdp, 1))
        abstract = {
            name: jax.ShapeDtypeStruct(
                shape, np.float32, sharding=NamedSharding(mesh, PartitionSpec(*SPECS[name]))
            )
            for name, shape in SHAPES.items()
        }
        counts = []
        for _ in range(LOADS):
            before = bytes_read()
            params = load_params(run, abstract={"projector": abstract})[1]["projector"]
            counts.append(bytes_read() - before)
        parts = {
            name: [
                (
                    [part.indices(size)[:2] for part, size in zip(shard.index, SHAPES[name], strict=True)],
                    zlib.crc32(np.asarray(shard.data).tobytes()),
                )
                for shard in array.addressable_shards
            ]
            for name, array in params.items()
        }
        print(json.dumps({"read": min(counts), "parts": parts}))


if __name__ == "__main__":
    main()
