"""Stage-1 step time from pixels and from stored tower states, and what storing them costs.

    python -m benchmarks.frozen_features

Method: one model, 336-pixel images, 24 x 24 patches, four levels, V = 16, all in float32 on the CPU;
tower and decoder are scaled to a CPU (widths 384 and 512, depth 12 each), so the ratio, not the time, is
of interest. Batches are random and lie ready: only the compiled step is timed. Steps of the two kinds take
turns; the median of 7 is reported. The sizes are of CLIP-L/14-336 itself.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np

from quecc_jax.config import (
    DataConfig,
    DecoderConfig,
    MeshConfig,
    ModelConfig,
    QueccConfig,
    RunConfig,
    TrainConfig,
    VisionConfig,
)
from quecc_jax.config.shapes import hidden_indices
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.sharding import make_mesh
from quecc_jax.train.step import build_trainer

IMAGES, STEPS = 558_128, 7


def config(cached: bool) -> RunConfig:
    """The run, with or without stored states."""
    vision = VisionConfig(width=384, heads=6, depth=12, mlp_width=1536, levels=(6, 8, 10, 11))
    decoder = DecoderConfig(vocab_size=8192, width=512, depth=12, heads=8, kv_heads=8, mlp_width=1408)
    model = ModelConfig(
        vision, QueccConfig(kernel=6, stride=6), decoder=decoder, dtype="float32", remat="none"
    )
    data = DataConfig(max_length=128, query_length=32, cached_features=cached)
    return RunConfig(
        model=model,
        data=data,
        train=TrainConfig(stage=1, batch_size=4, loss_chunk=128),
        mesh=MeshConfig(1, 1, 1),
    )


def random_batch(spec: Batch, rng: np.random.Generator) -> Batch:
    """Values of the spec's shapes: every row is an image, then text that is learned."""
    rows, length = spec.tokens.shape
    slots = np.tile(np.where(np.arange(length) < 16, np.arange(length), -1), (rows, 1)).astype(np.int32)
    tokens = np.where(slots < 0, rng.integers(1, 8192, slots.shape), 0).astype(np.int32)
    made = {
        "tokens": tokens,
        "slots": slots,
        "labels": np.where(slots < 0, tokens, IGNORE).astype(np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segments": np.ones(slots.shape, np.int32),
        "queries": rng.integers(1, 8192, spec.queries.shape).astype(np.int32),
        "query_segments": np.ones(spec.queries.shape, np.int32),
        "query_ends": np.full(spec.query_ends.shape, 31, np.int32),
    }
    if spec.pixels is not None:
        made["pixels"] = rng.integers(0, 256, spec.pixels.shape, dtype=np.uint8)
    else:
        made["features"] = rng.normal(size=spec.features.shape).astype(np.float16)
    return Batch(**made)


def main() -> None:
    """Times both, and prints sizes."""
    rng, running = np.random.default_rng(0), {}
    for cached in (False, True):
        run = config(cached)
        trainer = build_trainer(run, make_mesh(run.mesh, jax.devices()[:1]))
        batch = trainer.put(random_batch(trainer.abstract_batch, rng))
        state, _ = trainer.step(trainer.init(jax.random.key(0)), batch)
        running[cached] = (trainer, batch, jax.block_until_ready(state))
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(STEPS):
        for cached, (trainer, batch, state) in running.items():
            began = time.perf_counter()
            state, _ = jax.block_until_ready(trainer.step(state, batch))
            times[cached].append(time.perf_counter() - began)
            running[cached] = (trainer, batch, state)
    pixels, stored = (statistics.median(times[cached]) for cached in (False, True))
    print(
        f"stage-1 step of 4 rows: {pixels:.2f} s from pixels, {stored:.2f} s from stored states, "
        f"{pixels / stored:.2f}x"
    )
    for vision in (VisionConfig(), dataclasses.replace(VisionConfig(), levels=(23,))):
        states = len(hidden_indices(vision))
        size = vision.patches * states * vision.width * 2
        print(
            f"CLIP-L/14-336, {states} of its states, float16: {size:,} bytes an image, "
            f"{size * IMAGES / 1e12:.2f} TB for {IMAGES:,}"
        )


if __name__ == "__main__":
    main()
