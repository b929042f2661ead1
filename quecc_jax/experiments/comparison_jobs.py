"""The comparison's own jobs, as `quecc_jax.experiments.jobs`: training one entry, and timing all compressors."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from quecc_jax.config import CompressorConfig, ModelConfig
from quecc_jax.data.batch import Batch, batch_spec
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.experiments.comparison_plan import Entry, with_compressor
from quecc_jax.experiments.jobs import Report, answer, flops_per_question, train_stages
from quecc_jax.experiments.plan import Plan, picture_data
from quecc_jax.flops import compressor_cost, projector_flops, projector_params, query_flops
from quecc_jax.models.vlm import VLM

PICTURES, ROUNDS = 32, 15
"""Pictures that are timed at once, and how often."""


def train_entry(out: str, plan: Plan, entry: Entry, report: Report) -> list[dict[str, Any]]:
    """Trains one entry and tests it at each of its settings; its parameters are not kept."""
    started, words = time.time(), len(load_tokenizer(f"{out}/data/tokenizer"))
    base = f"{out}/runs/{entry.name}"
    model = with_compressor(plan, entry.trained, words)
    run, losses = train_stages(out, plan, model, plan.decoders[0].name, entry.seed, base, report)
    trained, rows = time.time() - started, []
    for config in entry.tested:
        report(10, 11, "answers")
        model = with_compressor(plan, config, words)
        scores, answers = answer(model, picture_data(out, "test", model.visual_tokens), run)
        rows.append(
            {
                "label": entry.label,
                "part": entry.part,
                "seed": entry.seed,
                "visual_tokens": model.visual_tokens,
                **scores,
                "flops_per_question": flops_per_question(out, model, answers),
                "train_seconds": trained,
                "loss": losses,
            }
        )
    shutil.rmtree(Path(base))
    return rows


def measure(
    out: str, plan: Plan, configs: tuple[tuple[str, CompressorConfig], ...], report: Report
) -> list[dict[str, Any]]:
    """Weights, FLOPs and CPU time of each labelled compressor, from the tower's states to visual tokens.

    The time is that of the question's pass, compressor and projector for a picture, on one core,
    float32: the median of rounds in which all take turns.
    """
    words = len(load_tokenizer(f"{out}/data/tokenizer"))
    models = [with_compressor(plan, config, words) for _, config in configs]
    tasks: list[Callable[[], Any]] = []
    for (label, _), model in zip(configs, models, strict=True):
        report(len(tasks), 2 * len(configs), f"compiling {label}")
        tasks.append(_timed(model, out))
    spent = np.zeros((len(tasks), ROUNDS))
    for turn in range(ROUNDS):
        report(ROUNDS + turn, 2 * ROUNDS, "timing")
        for place, run in enumerate(tasks):
            began = time.perf_counter()
            run()
            spent[place, turn] = time.perf_counter() - began
    found = []
    times = np.median(spent, axis=1) / PICTURES
    for (label, _), model, seconds in zip(configs, models, times, strict=True):
        cost, question = compressor_cost(model), picture_data(out, "test", model.visual_tokens).query_length
        found.append(
            {
                "label": label,
                "visual_tokens": model.visual_tokens,
                "params": cost.params,
                "projector_params": projector_params(model),
                "flops": cost.flops,
                "projector_flops": projector_flops(model),
                "query_flops": query_flops(model, question),
                "milliseconds": 1e3 * float(seconds),
            }
        )
    return found


def _timed(model: ModelConfig, out: str) -> Callable[[], Any]:
    """A call that waits for the visual tokens of PICTURES pictures, compiled already."""
    spec = batch_spec(model, picture_data(out, "test", model.visual_tokens), PICTURES, cached=True)
    rng = np.random.default_rng(0)

    def fill(x: Any) -> np.ndarray:
        if np.issubdtype(x.dtype, np.integer):
            return np.ones(x.shape, x.dtype)
        return rng.normal(size=x.shape).astype(np.float32)

    batch: Batch = jax.tree.map(fill, spec)
    vlm = VLM(model)
    params = nn.meta.unbox(jax.jit(vlm.init)(jax.random.key(0), batch)["params"])
    encode = jax.jit(lambda p, b: vlm.apply({"params": p}, b, method=VLM.visual_tokens))
    jax.block_until_ready(encode(params, batch))
    return lambda: jax.block_until_ready(encode(params, batch))
