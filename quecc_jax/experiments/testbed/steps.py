"""Steps of a grid on the testbed: data and tower before the cells, attention and timing after them."""

import dataclasses
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

from quecc_jax.config import DataConfig, MeshConfig, ModelConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.batch import Batch, batch_spec
from quecc_jax.data.sources.pool import Pool, read_pool, write_features
from quecc_jax.data.text.conversation import lay_out
from quecc_jax.data.text.templates import template_text
from quecc_jax.data.text.tokenizer import SPECIALS, load_tokenizer
from quecc_jax.data.text.turns import asking
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.evaluate.attention import attention_maps
from quecc_jax.experiments.cell import with_vocabulary
from quecc_jax.experiments.grid import Grid, Step
from quecc_jax.experiments.results import AttentionRecord, CostRecord, DataRecord, TowerRecord
from quecc_jax.experiments.testbed.build import build_pool, shrink_pool
from quecc_jax.experiments.testbed.cells import label_grid
from quecc_jax.experiments.testbed.corpus import asked_cell, write_corpus, write_questions
from quecc_jax.experiments.testbed.grids import blind_data, image_data, shrunk
from quecc_jax.experiments.testbed.settings import SPLITS, Testbed
from quecc_jax.experiments.testbed.tower import feature_fn, train_tower
from quecc_jax.experiments.worker import Report
from quecc_jax.fingerprint import tower_fingerprint
from quecc_jax.flops import compressor_cost, projector_flops, query_flops
from quecc_jax.generate.decode import Params
from quecc_jax.models.vlm import VLM
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import load_params, save_params
from quecc_jax.train.initial import borrowed
from quecc_jax.train.run_dir import copy_tokenizer
from quecc_jax.train.step import abstract_params

IMAGES, ROUNDS = 32, 15
"""Images that are timed at once, and how often."""


def _testbed(grid: Grid) -> Testbed:
    assert grid.testbed is not None
    return grid.testbed


def make_data(grid: Grid, _step: Step, report: Report) -> DataRecord:
    """Pools of all tasks and splits, the questions without images, and, unless they are given, the corpus and
    the tokenizer.

    Raises:
      UserError: the tokenizer to start from is not there.
    """
    testbed, data = _testbed(grid), Path(grid.out, "data")
    pools, blind = list[Pool](), list[Pool]()
    total = len(SPLITS) * len(testbed.tasks) + 2
    for number, (split, task) in enumerate(product(SPLITS, testbed.tasks)):
        report(number, total, f"{task} images, {split}")
        count = testbed.test_images if split == "test" else testbed.images
        size, folder, each = testbed.vision.image_size, data / f"{task}-{split}", testbed.questions
        pools.append(
            build_pool(task, split, folder, size, count, each, testbed.side, testbed.seed, testbed.negations)
        )
        blind.append(write_questions(pools[-1], data / f"{task}-{split}-blind"))
    report(total - 2, total, "text")
    if testbed.start:
        copy_tokenizer(f"{testbed.tower(grid.out)}/tokenizer", data / "tokenizer")
    else:
        corpus = write_corpus(pools[: len(testbed.tasks)], data / "corpus", testbed.documents, SPECIALS[2])
        texts = [row["conversations"][1]["value"].replace(SPECIALS[2], " ") for row in corpus.rows]
        train_word_tokenizer([*texts, template_text()], data / "tokenizer")
    tokenizer, settings = load_tokenizer(str(data / "tokenizer")), blind_data(grid.out, "test", testbed)
    asked = [row["conversations"][0]["value"] for pool in blind[len(testbed.tasks) :] for row in pool.rows]
    length = float(np.mean([len(lay_out(asking(q, 0), tokenizer, settings, 0).codes) for q in asked]))
    return {"vocabulary": len(tokenizer), "prompt_tokens": round(length, 1), "side": testbed.side}


def make_tower(grid: Grid, _step: Step, report: Report) -> TowerRecord:
    """Trains the tower, unless it is given, and stores the features of every pool.

    Raises:
      UserError: the tower to start from is not there, or another.
    """
    testbed = _testbed(grid)
    train, test = (
        [read_pool(f"{grid.out}/data/{task}-{split}") for task in testbed.tasks] for split in SPLITS
    )
    num_images = sum(len(pool.images) for pool in (*train, *test))
    # One trained image costs three forward passes.
    step_cost = 3 * testbed.tower_batch
    done = 0 if testbed.start else testbed.tower_steps * step_cost
    total = done + num_images
    model = grid.cells[0].runs[0].model
    model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, vocab_size=8))
    if testbed.start:
        params, record = jax.device_get(_given_tower(grid, model)), TowerRecord(accuracy={}, loss=[])
    else:
        params, record = train_tower(
            testbed.vision,
            train,
            test,
            steps=testbed.tower_steps,
            batch_size=testbed.tower_batch,
            learning_rate=testbed.tower_rate,
            log_every=25,
            on_log=lambda step, loss: report(step * step_cost, total, f"loss {loss:.3f}"),
        )
        params = jax.device_get(params)
        save_params(RunConfig(out=testbed.tower(grid.out), model=model), {"vision": params})
    fingerprint = tower_fingerprint(params, testbed.vision, DataConfig())
    encode = feature_fn(testbed.vision, params)
    for pool in (*train, *test):

        def show(stored: int, before: int = done) -> None:
            report(before + stored, total, "features")

        write_features(pool, encode, 128, fingerprint, show)
        done += len(pool.images)
    return record


def make_shrunk(grid: Grid, _step: Step, report: Report) -> None:
    """Every pool once more with images that are shrunk to V patches, for each V of the testbed's `shrunk`, and what the
    frozen tower makes of them."""
    testbed = _testbed(grid)
    params = load_params(testbed.tower(grid.out), ["vision"])[1]["vision"]
    every = list(product(testbed.shrunk, SPLITS, testbed.tasks))
    for number, (v, split, task) in enumerate(every):
        report(number, len(every), f"{task} images, {split}, shrunk to {v} patches")
        vision, pool = shrunk(testbed.vision, v), read_pool(f"{grid.out}/data/{task}-{split}")
        small = shrink_pool(pool, f"{pool.directory}-shrunk{v}", vision.image_size)
        fingerprint = tower_fingerprint(params, vision, DataConfig())
        write_features(small, feature_fn(vision, params), 128, fingerprint)


def _given_tower(grid: Grid, model: ModelConfig) -> Params:
    data = dataclasses.replace(
        image_data(grid.out, "train", model.visual_tokens, _testbed(grid)), cached_features=False
    )
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    spec = batch_spec(model, data, 1)
    abstract = abstract_params(RunConfig(out=grid.out, model=model, data=data), mesh, spec)
    start, wanted = _testbed(grid).tower(grid.out), {"vision": abstract["vision"]}
    return borrowed("the testbed's start", start, model, wanted, ["vision"])["vision"]


def measure_attention(grid: Grid, step: Step, report: Report) -> list[AttentionRecord]:
    """Share of the attention that falls on the cell a question names, for the models that the step needs.

    The average over heads and questions, of each kind, that name one cell; looking everywhere alike gives 1 / m^2.
    """
    testbed, chosen = _testbed(grid), [cell for cell in grid.cells if cell.name in step.needs]
    cell_of_patch = {}
    for task in testbed.tasks:
        m = testbed.side_of(task)
        cell_of_patch[task] = m, label_grid(np.arange(m * m).reshape(m, m, 1), testbed.vision.grid)[..., 0]
    found: list[AttentionRecord] = []
    for number, cell in enumerate(chosen):
        report(number, len(chosen), cell.name)
        config, params = load_params(cell.runs[-1].out)
        shares: dict[str, list[float]] = {}
        data = image_data(grid.out, "test", config.model.visual_tokens, testbed)
        for row, weights in attention_maps(dataclasses.replace(config, data=data), params):
            position = asked_cell(row["conversations"][0]["value"])
            if position and len(row.get("places", [[position]])[0]) == 1:
                m, cells = cell_of_patch[row["kind"].split("/")[0]]
                inside = cells == position[0] * m + position[1]
                shares.setdefault(row["kind"], []).append(float(weights[0, 0][:, inside].sum(-1).mean()))
        kinds = {kind: [float(np.mean(x)), len(x)] for kind, x in shares.items()}
        found.append({"llm": cell.llm, "seed": cell.seed, "query": cell.query, "kinds": kinds})
    return found


def time_compressors(grid: Grid, _step: Step, report: Report) -> list[CostRecord]:
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
    calls: list[Callable[[], object]] = []
    for (label, _), model in models.items():
        report(len(calls), 2 * len(models), f"compiling {label}")
        calls.append(_timed(model, grid))
    spent = np.zeros((len(calls), ROUNDS))
    for turn in range(ROUNDS):
        report(ROUNDS + turn, 2 * ROUNDS, "timing")
        for number, call in enumerate(calls):
            began = time.perf_counter()
            call()
            spent[number, turn] = time.perf_counter() - began
    milliseconds = (1e3 * np.median(spent, axis=1) / IMAGES).tolist()
    return [
        {
            "compressor": label,
            "visual_tokens": v,
            "params": compressor_cost(model).params,
            "flops": compressor_cost(model).flops,
            "projector_flops": projector_flops(model),
            "query_flops": query_flops(model, _testbed(grid).query_tokens),
            "milliseconds": taken,
        }
        for ((label, v), model), taken in zip(models.items(), milliseconds, strict=True)
    ]


def _timed(model: ModelConfig, grid: Grid) -> Callable[[], object]:
    """A call that waits for the visual tokens of IMAGES images, compiled already."""
    data = image_data(grid.out, "test", model.visual_tokens, _testbed(grid))
    spec = batch_spec(model, data, IMAGES, cached=True)
    rng = np.random.default_rng(0)

    def fill(x: jax.ShapeDtypeStruct) -> np.ndarray:
        if np.issubdtype(x.dtype, np.integer):
            return np.ones(x.shape, x.dtype)
        return rng.normal(size=x.shape).astype(np.float32)

    batch: Batch = jax.tree.map(fill, spec)
    vlm = VLM(model)
    params = nn.meta.unbox(jax.jit(vlm.init)(jax.random.key(0), batch)["params"])
    encode = jax.jit(lambda p, b: vlm.apply({"params": p}, b, method=VLM.visual_tokens))
    jax.block_until_ready(encode(params, batch))
    return lambda: jax.block_until_ready(encode(params, batch))
