"""Seconds of the programs of an engine by batch and length, beside what this machine could do at its best."""

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.config.shapes import query_width
from quecc_jax.data.batch import Batch, batch_spec
from quecc_jax.generate.engine import BEGIN, CHUNK, Engine
from quecc_jax.generate.reuse import encode_questions, finish, prepare
from quecc_jax.generate.sampling import per_row
from quecc_jax.generate.scheduler import EMPTY, GO_ON, INSERT
from quecc_jax.generate.slots import Room
from quecc_jax.models.vlm import VLM, Visual
from scaling.cost import Lengths, Machine, Work, seconds_of, work_of_query

BATCHES = (1, 4, 16)
QUESTION = 16
TEXT = (48, 240, 624)
RING = 64
REPEATS = 5


def seconds(job: Callable[[], Any]) -> float:
    """Median of a few runs, after one that compiles."""
    jax.block_until_ready(job())
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(job())
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def this_machine() -> Machine:
    """Peaks of float32 that large arrays reach: FLOP/s of a product of matrices, bytes/s of reading one.

    What decodes reads weights and writes next to nothing; an array that is written costs the first touch of its pages.
    """
    a = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    read, by = jnp.ones((1 << 14, 1 << 13), jnp.float32), jnp.ones((1 << 13,), jnp.float32)
    row = jax.jit(lambda x, y: x @ y)
    return Machine(
        f"{platform.machine()}, {os.cpu_count()} cores",
        2 * 2048**3 / seconds(lambda: product(a)),
        read.nbytes / seconds(lambda: row(read, by)),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        source="measured: a product of 2048 x 2048 matrices, and one of a matrix of 512 MiB with a vector, float32",
    )


def stages(engine: Engine) -> dict[str, Any]:
    """The form that `scaling plan --efficiency` reads: peaks of the machine, and of each part, batch and length the
    seconds, those that the peaks would take, and their ratio."""
    machine, rows = this_machine(), list[dict[str, Any]]()
    for b, text in itertools.product(BATCHES, TEXT):
        if text == TEXT[0]:
            of_images, visual = encoding(engine, b)
        length = text + engine.config.model.visual_tokens
        lengths = Lengths(text, 2, QUESTION)
        # The counter has two bytes for a number, and these have four.
        work = {
            part: Work(one.flops, 2 * one.shared, 2 * one.own)
            for part, one in work_of_query(engine.config.model, lengths).items()
        }
        for part, took in (of_images | answering(engine, b, length, visual)).items():
            ideal = float(seconds_of(work[part], machine, b))
            at = {"part": part, "batch": b, "length": length}
            rows.append({**at, "seconds": took, "ideal_seconds": ideal, "efficiency": ideal / took})
            print(rows[-1], flush=True)
    chip = {
        "name": machine.name,
        "flops": machine.flops,
        "bandwidth": machine.bandwidth,
        "memory": machine.memory,
    }
    return {
        "format": "quecc_jax serving efficiency 1",
        "chip": chip | {"source": machine.source},
        "model": {
            "decoder": "smollm2-135m",
            "compressor": engine.config.model.compressor.name,
            "visual_tokens": engine.config.model.visual_tokens,
            "dtype": engine.config.model.dtype,
        },
        "rows": rows,
    }


def encoding(engine: Engine, b: int) -> tuple[dict[str, float], Visual]:
    """Seconds of what is done for b questions before the decoder, whatever their length, and what it reads of their
    images."""
    config, params = engine.config.model, engine.params
    model = VLM(config, unrolled=True)
    spec = batch_spec(config, engine.config.data, b)
    rng = np.random.default_rng(0)
    assert spec.pixels is not None
    pixels = jnp.asarray(rng.integers(0, 256, (b, 1, *spec.pixels.shape[2:]), np.uint8))
    ids = jnp.asarray(rng.integers(100, 1000, (b, 1, QUESTION), np.int32))
    ends_at = jnp.full((b, 1), QUESTION, jnp.int32)
    # The engine's program of images goes on to `prepare`; the part of the plan does not.
    tower = jax.jit(lambda params, x: model.apply({"params": params}, x, method=VLM.encode_image))
    found = {"tower": seconds(lambda: tower(params, pixels))}
    states = tower(params, pixels)
    query = jnp.zeros((b, 1, query_width(config)), jnp.dtype(config.dtype))
    if config.compressor.reads_question:
        found["query"] = seconds(lambda: encode_questions(model, params, ids, ends_at))
    prepared = prepare(model, params, states)
    found["compressor"] = seconds(lambda: prepare(model, params, states))
    if config.compressor.reads_question:
        found["compressor"] += seconds(lambda: finish(model, params, prepared, query))
    return found, finish(model, params, prepared, query)


def answering(engine: Engine, b: int, length: int, visual: Visual) -> dict[str, float]:
    """Seconds of `prefill` of b prompts of one length, and of `decode` of one token of each."""
    model, ends, params = VLM(engine.config.model, unrolled=True), engine.ends.ids, engine.params
    found = {"prefill": seconds(lambda: BEGIN(model, ends, params, *_prompts(b, length, visual), 0))}
    fresh = BEGIN(model, ends, params, *_prompts(b, length, visual), 0)
    state = INSERT(EMPTY(model, ends, b, Room(length, RING)), fresh, np.arange(b))
    running, took = np.zeros(b, bool), []
    for _ in range(RING // CHUNK - 1):
        began = time.perf_counter()
        tokens, state = GO_ON(model, ends, params, state, running, np.int32(CHUNK), CHUNK, length)
        jax.block_until_ready(tokens)
        took.append((time.perf_counter() - began) / CHUNK)
    assert not np.asarray(state.done).any()
    # The first compiles.
    found["decode"] = statistics.median(took[1:])
    return found


def _prompts(b: int, length: int, visual: Visual) -> tuple[Any, ...]:
    """Prompts of random tokens behind visual ones, and how their answers are chosen."""
    v = visual.tokens.shape[2]
    slots = np.full((b, length), -1, np.int32)
    slots[:, :v] = np.arange(v)
    tokens = np.random.default_rng(1).integers(100, 1000, (b, length), np.int32)
    everywhere = np.ones((b, length), np.int32)
    none = np.zeros((b, 0), np.int32)
    batch = Batch(
        tokens=np.where(slots < 0, tokens, 0),
        slots=slots,
        labels=np.full_like(tokens, -100),
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), (b, length)),
        segments=everywhere,
        queries=none,
        query_segments=none,
        query_ends=np.zeros((b, 1), np.int32),
    )
    budget = np.full(b, 1 << 20, np.int32)
    keys = jax.random.split(jax.random.key(0), b)
    return batch, visual, budget, per_row([None] * b), keys
