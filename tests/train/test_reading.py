"""Reading checkpoints: each byte once over all hosts, and a bound on what a host holds of them."""

import json
import math
import zlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from quecc_jax.config import MeshConfig
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import save_params
from quecc_jax.train.reading import IN_FLIGHT, reading
from tests.processes import Processes
from tests.train.reader import SHAPES

TOTAL = 4 * sum(math.prod(shape) for shape in SHAPES.values())
BESIDES = 0.06
"""Of the total, what a process may read besides: modules, settings, metadata, samples by which files are checked."""


@pytest.fixture
def written(config) -> tuple[str, dict[str, np.ndarray]]:
    """A run of arrays that one process wrote, as an import does."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    save_params(config, {"projector": arrays})
    return config.out, arrays


@pytest.mark.parametrize(
    ("data", "fsdp", "shares"),
    [(1, 4, (0.5, 0.5)), (2, 2, (1.0, 0.0))],
    ids=["each its own part", "the first of two replicas"],
)
def test_two_processes_read_each_byte_once(written, tmp_path, data, fsdp, shares):
    run, arrays = written
    with Processes(["tests.train.reader", run, data, fsdp], 2, tmp_path / "two") as two:
        assert two.statuses(240) == [0, 0], two.said()
        found = [json.loads(two.printed(number)) for number in range(2)]
    for process, share in zip(found, shares, strict=True):
        assert share <= process["read"] / TOTAL < share + BESIDES
        for name, parts in process["parts"].items():
            for ranges, checksum in parts:
                part = arrays[name][tuple(slice(*one) for one in ranges)]
                assert checksum == zlib.crc32(part.tobytes())


def _wanted(shape: tuple[int, ...], *spec: str | None) -> jax.ShapeDtypeStruct:
    mesh = make_mesh(MeshConfig(1, 8, 1))
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def _stored(shape: tuple[int, ...], chunk: tuple[int, ...]) -> SimpleNamespace:
    return SimpleNamespace(
        shape=shape, dtype=np.dtype(np.float32), storage=SimpleNamespace(chunk_shape=chunk)
    )


@pytest.mark.parametrize(
    ("chunk", "bound"),
    [
        # 640 of 5,120 rows, and a chunk that sticks out.
        ((1, 256, 512), 4 * 64 * (640 // 256 + 2) * 256 * 27648 + 1),
        # What 0.2 wrote: each chunk is a layer, and all of them are read.
        ((1, 5120, 27648), 4 * 64 * 5120 * 27648 + 1),
        # The last chunk sticks out of the array.
        ((1, 3000, 27648), 4 * 64 * 6000 * 27648 + 1),
    ],
)
def test_a_host_holds_the_chunks_of_one_device_s_part_at_once(chunk, bound):
    shape = (64, 5120, 27648)
    context = reading({"gate": _stored(shape, chunk)}, {"gate": _wanted(shape, None, "fsdp")})
    assert context.memory.read_concurrent_bytes == bound


def test_small_arrays_share_the_room_of_many():
    context = reading(
        {"a": _stored((8, 8), (8, 8)), "other": _stored((9,), (9,))}, {"a": _wanted((8, 8), "fsdp")}
    )
    assert context.memory.read_concurrent_bytes == IN_FLIGHT
    assert not context.array.loading.use_load_and_broadcast
