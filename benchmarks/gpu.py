"""LLaVA-1.5-7B behind QueCC on one GPU: answers, training steps and attention kernels beside the roofline.

    python -m benchmarks.gpu ceilings attention answers training tables   [--llm vicuna-7b]

Method. Random weights in the published shapes, in bfloat16 where the library computes in it: time does not
depend on their values. Every program is compiled and run once before it is timed; a number is the median of
--repeats runs and ends when its result is there. Predictions are those of `python -m scaling plan` for the
data sheet's figures, at full efficiency.

ceilings: bfloat16 product of two 8192 x 8192 matrices; copy of 4 GiB, bytes read and written.
attention: cuDNN against XLA, forward and backward, rows of two packed conversations.
answers: seconds to the first token of a new image and question, of a new question about an image that was
seen before, and per token after the first; for V visual tokens of 576 patches (576: no compressor).
training: seconds of a step of stage 1 (compressor and projector, decoder frozen), tokens, share of the data
sheet's peak in the FLOPs that the model needs.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.generate import noise
from benchmarks.markdown import table
from quecc_jax import flops
from quecc_jax.aot.chips import find_chip
from quecc_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig, TrainConfig
from quecc_jax.data.batch import IGNORE, Batch, batch_spec
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.models.attention import causal, cudnn_attention, xla_attention
from quecc_jax.sharding import make_mesh
from quecc_jax.train.step import boxed_params, build_trainer
from scaling.cost import (
    PARTS,
    Lengths,
    Machine,
    find_llm,
    find_machine,
    model_config,
    seconds_of,
    work_of_query,
)

WORDS = 12
"""Of a question."""
CALLS = 5
"""Of an attention kernel, one after another, so that the time to start the first hardly counts."""
NEW = 65
"""Generated tokens; those after the first come in chunks of 16."""


def median_seconds(runs: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Of calls that take turns; each returns what must be there."""
    spent: list[list[float]] = [[] for _ in runs]
    for turn in range(repeats + 1):
        for place, run in enumerate(runs):
            began = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                spent[place].append(time.perf_counter() - began)
    return [statistics.median(times) for times in spent]


def ceilings(repeats: int) -> dict[str, float]:
    """FLOP/s and bytes/s that this GPU reaches."""
    size, long = 8192, 1 << 30
    a, b = (jax.random.normal(jax.random.key(k), (size, size), jnp.bfloat16) for k in (0, 1))
    c = jax.random.normal(jax.random.key(2), (long,), jnp.float32)
    product, copy = jax.jit(jnp.dot), jax.jit(lambda x: x + 1)
    # Several at a time, so that the time to start one does not count.
    several = 10
    one, other = median_seconds(
        [lambda: [product(a, b) for _ in range(several)], lambda: [copy(c) for _ in range(3)][-1]], repeats
    )
    return {"flops": several * 2 * size**3 / one, "bytes": 3 * 2 * 4 * long / other}


def timed_attention(kernel: Any, both: bool, q: Any, k: Any, v: Any, mask: Any) -> Callable[[], Any]:
    """CALLS calls of a kernel, or of it and its backward pass."""

    def loss(q: Any, k: Any, v: Any, mask: Any) -> jax.Array:
        return jnp.sum(kernel(q, k, v, mask).astype(jnp.float32) ** 2)

    run: Any = jax.jit(jax.grad(loss, (0, 1, 2)) if both else kernel)
    return lambda: [run(q, k, v, mask) for _ in range(CALLS)]


def attention_kernels(repeats: int) -> list[dict[str, Any]]:
    """Seconds of CALLS calls of both kernels, forward and with the backward pass; a layer of a 7B model."""
    found = []
    for rows, length in ((16, 256), (8, 640), (8, 2048)):
        rng = np.random.default_rng(0)
        q, k, v = (jnp.asarray(rng.normal(size=(rows, length, 32, 128)), jnp.bfloat16) for _ in range(3))
        segments = np.ones((rows, length), np.int32)
        segments[:, length // 3 :] = 2
        positions = np.where(segments == 1, np.arange(length), np.arange(length) - length // 3)
        mask = causal(jnp.asarray(segments), jnp.asarray(positions, jnp.int32))
        runs = {
            f"{name} {way}": timed_attention(kernel, way == "both", q, k, v, mask)
            for name, kernel in (("cudnn", cudnn_attention), ("xla", xla_attention))
            for way in ("forward", "both")
        }
        seconds = median_seconds(list(runs.values()), repeats)
        found.append({"rows": rows, "length": length, **dict(zip(runs, seconds, strict=True))})
        print(found[-1], flush=True)
    return found


def model_of(llm: str, visual_tokens: int, small: bool) -> ModelConfig:
    """CLIP-L/14 at 336 pixels and QueCC before the decoder; `small` keeps two layers of each."""
    model = model_config(find_llm(llm), visual_tokens)
    if not small:
        return model
    vision = dataclasses.replace(model.vision, depth=3, levels=(1, 2, 3))
    return dataclasses.replace(model, vision=vision, decoder=dataclasses.replace(model.decoder, depth=2))


def random_params(config: RunConfig) -> dict[str, Any]:
    """Small random numbers in the shapes of a run's parameters, made on the device in bfloat16; norms in
    float32."""
    boxed = boxed_params(config, batch_spec(config.model, config.data, 1))
    leaves, tree = jax.tree_util.tree_flatten_with_path(nn.meta.unbox(boxed))
    draw = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, jnp.bfloat16), static_argnums=1)
    made = []
    for number, (path, leaf) in enumerate(leaves):
        if any("norm" in key.key for key in path):
            made.append(jnp.ones(leaf.shape, jnp.float32))
        else:
            made.append(draw(jax.random.key(number), leaf.shape))
    return jax.tree.unflatten(tree, made)


def predicted(model: ModelConfig, machine: Machine, rows: int, text: int, question: int) -> dict[str, float]:
    """Roofline seconds to the first token, the same without the tower, and per token after it."""
    work = work_of_query(model, Lengths(text, NEW, question))
    seconds = {part: float(seconds_of(work[part], machine, rows)) for part in PARTS}
    after = seconds.pop("decode")
    return {
        "first": sum(seconds.values()),
        "seen": sum(seconds.values()) - seconds["tower"],
        "token": after / (NEW - 1),
    }


def new_image(engine: Engine, rng: np.random.Generator) -> Any:
    """Noise, as the engine takes it."""
    return engine.image(noise(rng, engine.config.model.vision.image_size))


def answers(
    llm: str, repeats: int, small: bool, rows: Sequence[int], counts: Sequence[int]
) -> list[dict[str, Any]]:
    """A row per V and batch."""
    rng, found = np.random.default_rng(1), []
    with tempfile.TemporaryDirectory() as scratch:
        words = [f"w{n}" for n in range(2000)]
        train_word_tokenizer([" ".join(words)], Path(scratch, "words"))
        for visual_tokens in counts:
            model = model_of(llm, visual_tokens, small)
            data = DataConfig(tokenizer=str(Path(scratch, "words")), template="short", max_length=1024)
            config = RunConfig(model=model, data=data)
            engine = Engine(config, random_params(config), chunk=16)
            for batch in rows:
                times: dict[str, list[float]] = {"first": [], "seen": [], "token": []}
                for turn in range(repeats + 1):
                    seen = [new_image(engine, rng) for _ in range(batch)]
                    for name in ("first", "seen"):
                        asked = [Question(" ".join(rng.choice(words, WORDS)), (one,)) for one in seen]
                        run = engine.run(asked, Limits(NEW))
                        run.finish()
                        usage = max(run.usage, key=lambda u: u.new_tokens)
                        if turn:
                            times[name].append(usage.first_token_seconds)
                            after = usage.seconds - usage.first_token_seconds
                            times["token"].append(after / max(1, usage.new_tokens - 1))
                measured = {name: statistics.median(values) for name, values in times.items()}
                text = usage.prompt_tokens - visual_tokens
                question = len(engine.tokenizer.encode(asked[0].text))
                bound = predicted(model, find_machine("h100"), batch, text, question)
                found.append(
                    {
                        "visual_tokens": visual_tokens,
                        "rows": batch,
                        "prompt": usage.prompt_tokens,
                        "question": question,
                        "new": usage.new_tokens,
                        "measured": measured,
                        "predicted": bound,
                    }
                )
                print(json.dumps(found[-1]), flush=True)
            del engine
    return found


def peak_gib() -> float:
    """Most memory that this process has held on the device."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", 0) / 2**30


def training(
    llm: str, repeats: int, small: bool, counts: Sequence[int], text: int = 128, tokens: int = 4096
) -> list[dict[str, Any]]:
    """A row per V: stage 1 on rows of an image and `text` tokens, about `tokens` of them in a step."""
    found, peak = [], find_chip("h100").flops
    for visual_tokens in counts:
        length = text + visual_tokens + visual_tokens % 2
        rows = max(1, tokens // length)
        model = model_of(llm, visual_tokens, small)
        data = DataConfig(max_length=length, query_length=32)
        for kernel in ("auto", "xla"):
            config = RunConfig(
                model=dataclasses.replace(model, attention_kernel=kernel),
                data=data,
                train=TrainConfig(stage=1, steps=1000, batch_size=rows),
            )
            trainer = build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]))
            state = trainer.init(jax.random.key(0))
            batch = trainer.put(full_batch(config))
            began = time.perf_counter()
            state, metrics = trainer.step(state, batch)
            jax.block_until_ready(metrics)
            compiling, spent = time.perf_counter() - began, []
            for _ in range(repeats):
                began = time.perf_counter()
                state, metrics = trainer.step(state, batch)
                jax.block_until_ready(metrics)
                spent.append(time.perf_counter() - began)
            seconds, needed = statistics.median(spent), flops.train_flops(config)
            found.append(
                {
                    "visual_tokens": visual_tokens,
                    "rows": rows,
                    "length": length,
                    "attention": kernel,
                    "seconds": seconds,
                    "compile": compiling,
                    "tokens_per_s": rows * length / seconds,
                    "mfu": needed / seconds / peak,
                    "loss": float(metrics["loss"]),
                    "peak_gib": peak_gib(),
                }
            )
            print(json.dumps(found[-1]), flush=True)
            del state, trainer
    return found


def full_batch(config: RunConfig) -> Batch:
    """Rows of one image, then text, half of it answers."""
    rng, model, data, rows = np.random.default_rng(0), config.model, config.data, config.train.batch_size
    length, v, side = data.max_length, model.visual_tokens, model.vision.image_size
    tokens = rng.integers(1, model.decoder.vocab_size, (rows, length)).astype(np.int32)
    slots, labels = np.full_like(tokens, -1), np.full_like(tokens, IGNORE)
    slots[:, 1 : 1 + v] = np.arange(v)
    tokens[:, 1 : 1 + v] = 0
    half = (length + 1 + v) // 2
    labels[:, half:] = tokens[:, half:]
    return Batch(
        tokens=tokens,
        slots=slots,
        labels=labels,
        positions=np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape).copy(),
        segments=np.ones_like(tokens),
        queries=rng.integers(1, model.decoder.vocab_size, (rows, data.query_limit)).astype(np.int32),
        query_segments=np.ones((rows, data.query_limit), np.int32),
        query_ends=np.full((rows, 1), data.query_limit - 1, np.int32),
        pixels=rng.integers(0, 256, (rows, 1, side, side, 3), dtype=np.uint8),
    )


def tables(found: dict[str, Any]) -> str:
    """All parts in Markdown."""
    ceiling, blocks = found["ceilings"], [f"{found['device']}, jax {found['jax']}, {found['llm']}"]
    blocks.append(f"{ceiling['flops'] / 1e12:.0f} TFLOP/s in bfloat16, {ceiling['bytes'] / 1e12:.2f} TB/s")
    blocks.append(
        table(
            (
                "V",
                "questions",
                "prompt",
                "first token, ms",
                "image seen, ms",
                "per token after it, ms",
                "the same by the roofline, ms",
            ),
            [
                [
                    r["visual_tokens"],
                    r["rows"],
                    r["prompt"],
                    *(f"{1e3 * r['measured'][k]:.1f}" for k in ("first", "seen", "token")),
                    " / ".join(f"{1e3 * r['predicted'][k]:.1f}" for k in ("first", "seen", "token")),
                ]
                for r in sorted(found["answers"], key=lambda r: (r["rows"], r["visual_tokens"]))
            ],
        )
    )
    blocks.append(
        table(
            ("V", "rows", "length", "attention", "step, ms", "tokens/s", "model FLOPs / peak", "compile, s"),
            [
                [
                    r["visual_tokens"],
                    r["rows"],
                    r["length"],
                    r["attention"],
                    f"{1e3 * r['seconds']:.0f}",
                    f"{r['tokens_per_s']:,.0f}",
                    f"{100 * r['mfu']:.0f} %",
                    f"{r['compile']:.0f}",
                ]
                for r in found["training"]
            ],
        )
    )
    blocks.append(
        table(
            ("rows", "length", "cuDNN forward, ms", "XLA", "ratio", "cuDNN with backward", "XLA", "ratio"),
            [
                [
                    r["rows"],
                    r["length"],
                    *(
                        cell
                        for way in ("forward", "both")
                        for cell in (
                            f"{1e3 * r[f'cudnn {way}'] / CALLS:.2f}",
                            f"{1e3 * r[f'xla {way}'] / CALLS:.2f}",
                            f"{r[f'xla {way}'] / r[f'cudnn {way}']:.1f}",
                        )
                    ),
                ]
                for r in found["attention"]
            ],
        )
    )
    return "\n\n".join(blocks)


Part = Literal["ceilings", "attention", "answers", "training", "tables"]


def main(
    parts: tyro.conf.Positional[tuple[Part, ...]],
    llm: str = "vicuna-7b",
    repeats: int = 5,
    counts: tuple[int, ...] = (1, 16, 144, 576),
    rows: tuple[int, ...] = (1, 16),
    small: bool = False,
    out: Path = Path("docs/gpu.json"),
) -> None:
    """LLaVA-1.5-7B with QueCC on one GPU.

    Args:
      parts: what is measured, or printed.
      llm: the language model.
      repeats: runs whose median counts.
      counts: values of V.
      rows: questions at a time.
      small: two layers, to see it work.
      out: all numbers; parts that are not run are kept.
    """
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    measurements: dict[str, Callable[[], Any]] = {
        "ceilings": lambda: ceilings(repeats),
        "attention": lambda: attention_kernels(repeats),
        "answers": lambda: answers(llm, repeats, small, rows, counts),
        "training": lambda: training(llm, repeats, small, counts),
    }
    for part in parts:
        if part == "tables":
            print(tables(found))
            continue
        found |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "llm": llm}
        found[part] = measurements[part]()
        out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    tyro.cli(main)
