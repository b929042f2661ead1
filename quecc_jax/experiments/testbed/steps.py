"""Steps of a grid on the testbed: data and tower before the cells, attention and timing after them."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from quecc_jax.config import DataConfig, ModelConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.batch import Batch, batch_spec
from quecc_jax.data.sources.pool import read_pool, write_features
from quecc_jax.data.text.conversation import lay_out
from quecc_jax.data.text.templates import template_text
from quecc_jax.data.text.tokenizer import SPECIALS, load_tokenizer
from quecc_jax.data.text.turns import asking
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.evaluate.attention import attention_maps
from quecc_jax.experiments.cell import with_vocabulary
from quecc_jax.experiments.executors import Report
from quecc_jax.experiments.grid import Grid, Step
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.experiments.testbed.cells import label_grid
from quecc_jax.experiments.testbed.corpus import asked_cell, write_corpus, write_questions
from quecc_jax.experiments.testbed.grids import blind_data, image_data
from quecc_jax.experiments.testbed.settings import TASKS, Testbed
from quecc_jax.experiments.testbed.tower import feature_fn, train_tower
from quecc_jax.fingerprint import tower_fingerprint
from quecc_jax.flops import compressor_cost, projector_flops, projector_params, query_flops
from quecc_jax.models.vlm import VLM
from quecc_jax.train.checkpoint import load_params, save_params

IMAGES, ROUNDS = 32, 15
"""Images that are timed at once, and how often."""


def _testbed(grid: Grid) -> Testbed:
    assert grid.testbed is not None
    return grid.testbed


def make_data(grid: Grid, _step: Step, report: Report) -> dict[str, Any]:
    """Pools of all tasks and splits, the corpus, the questions without images, the tokenizer."""
    bed, data, splits = _testbed(grid), Path(grid.out, "data"), ("train", "test")
    pools = {}
    for number, (task, split) in enumerate((t, s) for t in TASKS for s in splits):
        report(number, 8, f"{task} images, {split}")
        pools[task, split] = build_pool(
            task,  # type: ignore[arg-type]
            split,  # type: ignore[arg-type]
            data / f"{task}-{split}",
            bed.vision.image_size,
            num_images=bed.test_images if split == "test" else bed.images,
            questions_per_image=bed.questions,
            m=bed.side,
            seed=bed.seed,
        )
    report(6, 8, "text")
    trains = [pools[t, "train"] for t in TASKS]
    corpus = write_corpus(trains, data / "corpus", bed.documents, SPECIALS[2])
    for (task, split), pool in pools.items():
        write_questions(pool, data / f"{task}-{split}-blind")
    texts = [row["conversations"][1]["value"].replace(SPECIALS[2], " ") for row in corpus.rows]
    words = train_word_tokenizer([*texts, template_text()], data / "tokenizer")
    sizes = {f"{t}-{s}": {"images": len(p.images), "questions": len(p.rows)} for (t, s), p in pools.items()}
    tokenizer, settings = load_tokenizer(str(data / "tokenizer")), blind_data(grid.out, "test")
    asked = [r["conversations"][0]["value"] for t in TASKS for r in read_pool(data / f"{t}-test-blind").rows]
    length = float(np.mean([len(lay_out(asking(q, 0), tokenizer, settings, 0).codes) for q in asked]))
    return {"vocabulary": words, "prompt_tokens": round(length, 1), "side": bed.side, "pools": sizes}


def make_tower(grid: Grid, _step: Step, report: Report) -> dict[str, Any]:
    """Trains the tower and stores the features of every pool."""
    bed = _testbed(grid)
    pools = {s: [read_pool(f"{grid.out}/data/{t}-{s}") for t in TASKS] for s in ("train", "test")}
    num_images = sum(len(p.images) for group in pools.values() for p in group)
    # One trained image costs three forward passes.
    total = bed.tower_steps * bed.tower_batch * 3 + num_images
    result = train_tower(
        bed.vision,
        pools["train"],
        pools["test"],
        steps=bed.tower_steps,
        batch_size=bed.tower_batch,
        learning_rate=bed.tower_rate,
        log_every=25,
        on_log=lambda step, loss: report(step * bed.tower_batch * 3, total, f"loss {loss:.3f}"),
    )
    params = jax.device_get(result.params)
    fingerprint = tower_fingerprint(params, bed.vision, DataConfig())
    model = grid.cells[0].runs[0].model
    model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, vocab_size=8))
    save_params(RunConfig(out=f"{grid.out}/tower", model=model), {"vision": params})
    done = bed.tower_steps * bed.tower_batch * 3
    run = feature_fn(bed.vision, params)
    for pool in (p for group in pools.values() for p in group):

        def show(stored: int, before: int = done) -> None:
            report(before + stored, total, "features")

        write_features(pool, run, 128, fingerprint, show)
        done += len(pool.images)
    return {"accuracy": result.accuracy, "loss": result.loss, "fingerprint": fingerprint}


def measure_attention(grid: Grid, step: Step, report: Report) -> list[dict[str, Any]]:
    """Share of the attention that falls on the cell a question names, for the models that the step needs.

    The average over heads and questions of each kind; 1 / m^2 is what looking everywhere alike gives.
    """
    bed = _testbed(grid)
    found, m, chosen = [], bed.side, [cell for cell in grid.cells if cell.name in step.needs]
    cell_of_patch = label_grid(np.arange(m * m).reshape(m, m, 1), bed.vision.grid)[..., 0]
    for number, cell in enumerate(chosen):
        report(number, len(chosen), cell.name)
        config, params = load_params(cell.runs[-1].out)
        shares: dict[str, list[float]] = {}
        data = image_data(grid.out, "test", config.model.visual_tokens)
        for row, weights in attention_maps(dataclasses.replace(config, data=data), params):
            if position := asked_cell(row["conversations"][0]["value"]):
                inside = cell_of_patch == position[0] * m + position[1]
                shares.setdefault(row["kind"], []).append(float(weights[0, 0][:, inside].sum(-1).mean()))
        kinds = {kind: [float(np.mean(x)), len(x)] for kind, x in shares.items()}
        found.append({"llm": cell.llm, "seed": cell.seed, "query": cell.query, "kinds": kinds})
    return found


def time_compressors(grid: Grid, _step: Step, report: Report) -> list[dict[str, Any]]:
    """Weights, FLOPs and CPU time of each compressor that is tested, from the tower's states to visual tokens.

    The time is that of the question's pass, compressor and projector for an image, on one core,
    float32: the median of rounds in which all take turns.
    """
    models = {
        (cell.compressor, model.visual_tokens): model
        for cell in grid.cells
        if cell.sees_images
        for v in cell.visual_tokens or (0,)
        for model in [at_visual_tokens(with_vocabulary(cell.runs[-1]).model, v)]
    }
    calls: list[Callable[[], Any]] = []
    for (label, _), model in models.items():
        report(len(calls), 2 * len(models), f"compiling {label}")
        calls.append(_timed(model, grid.out))
    spent = np.zeros((len(calls), ROUNDS))
    for turn in range(ROUNDS):
        report(ROUNDS + turn, 2 * ROUNDS, "timing")
        for number, call in enumerate(calls):
            began = time.perf_counter()
            call()
            spent[number, turn] = time.perf_counter() - began
    found = []
    for ((label, v), model), seconds in zip(models.items(), np.median(spent, axis=1) / IMAGES, strict=True):
        cost = compressor_cost(model)
        found.append(
            {
                "compressor": label,
                "visual_tokens": v,
                "params": cost.params,
                "projector_params": projector_params(model),
                "flops": cost.flops,
                "projector_flops": projector_flops(model),
                "query_flops": query_flops(model, image_data(grid.out, "test", v).query_length),
                "milliseconds": 1e3 * float(seconds),
            }
        )
    return found


def _timed(model: ModelConfig, out: str) -> Callable[[], Any]:
    """A call that waits for the visual tokens of IMAGES images, compiled already."""
    spec = batch_spec(model, image_data(out, "test", model.visual_tokens), IMAGES, cached=True)
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
