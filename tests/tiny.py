"""A model small enough to train in a test, and random but valid parameters and batches for it."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from quecc_jax.config import (
    DataConfig,
    DecoderConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    QueccConfig,
    RunConfig,
    TrainConfig,
    VisionConfig,
)
from quecc_jax.config.io import save_config
from quecc_jax.config.shapes import row_limit
from quecc_jax.data.batch import IGNORE, Batch, batch_spec
from quecc_jax.data.text.queries import question_ids, question_segments
from quecc_jax.sharding import make_mesh
from quecc_jax.train.run_dir import list_run
from quecc_jax.train.step import abstract_params

MODEL = ModelConfig(
    vision=VisionConfig(
        image_size=16,
        patch_size=4,
        width=16,
        depth=3,
        heads=2,
        mlp_width=32,
        select_layer=-2,
        levels=(1, 2, 3),
    ),
    compressor=QueccConfig(kernel=2, stride=2, heads=4),
    decoder=DecoderConfig(vocab_size=64, width=32, depth=2, heads=4, kv_heads=2, mlp_width=48),
    dtype="float32",
    remat="none",
)

RUN = RunConfig(
    model=MODEL,
    data=DataConfig(max_length=24, query_length=6, images_per_row=2),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    train=TrainConfig(stage=2, steps=20, batch_size=8, loss_chunk=8),
)


def run(
    model: dict | None = None, data: dict | None = None, optimizer: dict | None = None, **train
) -> RunConfig:
    """RUN with some fields of its parts replaced."""
    return dataclasses.replace(
        RUN,
        model=dataclasses.replace(RUN.model, **(model or {})),
        data=dataclasses.replace(RUN.data, **(data or {})),
        optimizer=dataclasses.replace(RUN.optimizer, **(optimizer or {})),
        train=dataclasses.replace(RUN.train, **train),
    )


def random_params(config: RunConfig, seed: int = 0) -> dict[str, Any]:
    """float32 parameters by top-level name, biases and scales as random as kernels; compiles nothing."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    shapes = abstract_params(config, mesh, batch_spec(config.model, config.data, 1))
    return random_like(shapes, seed)


def random_like(shapes: Any, seed: int = 0) -> Any:
    """Random arrays of the shapes in a parameter tree: scales near one, biases small."""
    rng = np.random.default_rng(seed)

    def one(path: Any, leaf: Any) -> np.ndarray:
        name, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        return 1 + 0.1 * noise if name == "scale" else (0.1 if "bias" in name else 0.3) * noise

    return jax.tree_util.tree_map_with_path(one, shapes)


def random_batch(config: RunConfig, seed: int = 0, images: list[int] | None = None) -> Batch:
    """A batch whose row r holds images[r] images (default 0, 1, 2, 0, ...), random text and answers."""
    rng = np.random.default_rng(seed)
    model, data, b = config.model, config.data, config.train.batch_size
    s, i, v = data.max_length, data.images_per_row, model.visual_tokens
    images = images or [r % (i + 1) for r in range(b)]
    tokens, slots = np.zeros((b, s), np.int32), np.full((b, s), -1, np.int32)
    labels, segments = np.full((b, s), IGNORE, np.int32), np.zeros((b, s), np.int32)
    query_ends, q = np.full((b, i), -1, np.int32), row_limit(data, i)
    for r, count in enumerate(images):
        length = int(rng.integers(count * v + 8, s + 1)) if count * v + 8 <= s else s
        tokens[r, :length] = rng.integers(1, model.decoder.vocab_size, length)
        tokens[r, 1 : 1 + count * v] = 0
        slots[r, 1 : 1 + count * v] = np.arange(count * v)
        labels[r, length - 4 : length] = tokens[r, length - 4 : length]
        segments[r, :length] = 1
        query_ends[r, :count] = np.cumsum(rng.integers(1, data.query_limit + 1, count)) - 1
    side = model.vision.image_size
    return Batch(
        tokens=tokens,
        slots=slots,
        labels=labels,
        positions=np.broadcast_to(np.arange(s, dtype=np.int32), (b, s)).copy(),
        segments=segments,
        queries=rng.integers(1, model.decoder.vocab_size, (b, q)).astype(np.int32),
        query_segments=np.stack([question_segments(ends[ends >= 0], q) for ends in query_ends]),
        query_ends=query_ends,
        pixels=rng.integers(0, 256, (b, i, side, side, 3), dtype=np.uint8),
        ids=np.arange(b, dtype=np.int64),
    )


def asked(batch: Batch) -> list[tuple[int, int, np.ndarray]]:
    """(row, image, ids) of every question of a batch."""
    queries, segments, ends = batch.queries, batch.query_segments, batch.query_ends
    return [
        (row, image, question_ids(queries[row], segments[row], ends[row, image]))
        for row, image in np.argwhere(ends >= 0)
    ]


def change_config(run: Path, config: RunConfig) -> None:
    """Changes a run's config.json as one who knows of checksums.json does."""
    save_config(config, run / "config.json")
    list_run(run)
