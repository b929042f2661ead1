"""The jobs of a study: data, tower, language models, baseline, cells.

Each job is a function of (out directory, plan, report) that leaves its result under `out` and
returns a small JSON value; `report(done, total, note)` tells the display how far it is.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image

from quecc_jax.config import DataConfig, ModelConfig, RunConfig
from quecc_jax.data.sources.pool import read_pool, write_features
from quecc_jax.data.text.conversation import prompt
from quecc_jax.data.text.templates import template_text
from quecc_jax.data.text.tokenizer import SPECIALS, load_tokenizer, train_word_tokenizer
from quecc_jax.evaluate.attention import attention_maps
from quecc_jax.evaluate.predict import Answer, predict
from quecc_jax.evaluate.score import accuracy, is_exact
from quecc_jax.experiments.plan import (
    TASKS,
    Cell,
    Plan,
    blind_data,
    cells,
    corpus_data,
    model_config,
    picture_data,
    run_config,
)
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.experiments.testbed.cells import label_grid
from quecc_jax.experiments.testbed.corpus import asked_cell, write_corpus, write_questions
from quecc_jax.experiments.testbed.tower import feature_fn, train_tower
from quecc_jax.fingerprint import tower_fingerprint
from quecc_jax.flops import answer_flops, decoder_params
from quecc_jax.train.checkpoint import load_params, save_params
from quecc_jax.train.loop import train

Report = Callable[[float, float, str], None]
"""Called with (units done, units in all, what is going on)."""

ANSWER_TOKENS = 5
SAMPLES = 8
"""Test questions per task whose answers are kept for the report."""


def make_data(out: str, plan: Plan, report: Report) -> dict[str, Any]:
    """Pools of all tasks and splits, the corpus, the questions without pictures, the tokenizer."""
    data, splits = Path(out, "data"), ("train", "test")
    pools = {}
    for place, (task, split) in enumerate((t, s) for t in TASKS for s in splits):
        report(place, 8, f"{task} pictures, {split}")
        test = split == "test"
        pools[task, split] = build_pool(
            task,  # type: ignore[arg-type]
            split,  # type: ignore[arg-type]
            data / f"{task}-{split}",
            plan.vision.image_size,
            num_images=plan.test_pictures if test else plan.pictures,
            questions_per_image=plan.questions,
            m=plan.side,
            seed=plan.seeds[0],
        )
    report(6, 8, "text")
    trains = [pools[t, "train"] for t in TASKS]
    corpus = write_corpus(trains, data / "corpus", plan.documents, SPECIALS[2])
    for (task, split), pool in pools.items():
        write_questions(pool, data / f"{task}-{split}-blind")
    texts = [row["conversations"][1]["value"].replace(SPECIALS[2], " ") for row in corpus.rows]
    words = train_word_tokenizer([*texts, template_text()], data / "tokenizer")
    sizes = {f"{t}-{s}": {"pictures": len(p.images), "questions": len(p.rows)} for (t, s), p in pools.items()}
    tokenizer, settings = load_tokenizer(str(data / "tokenizer")), blind_data(out, "test")
    asked = [r["conversations"][0]["value"] for t in TASKS for r in read_pool(data / f"{t}-test-blind").rows]
    length = float(np.mean([len(prompt(q, 0, tokenizer, settings, 0)["tokens"]) for q in asked]))
    return {"vocabulary": words, "prompt_tokens": round(length, 1), "pools": sizes}


def make_tower(out: str, plan: Plan, report: Report) -> dict[str, Any]:
    """Trains the tower and stores the features of every pool."""
    pools = {s: [read_pool(f"{out}/data/{t}-{s}") for t in TASKS] for s in ("train", "test")}
    pictures = sum(len(p.images) for group in pools.values() for p in group)
    # One trained picture costs three forward passes.
    total = plan.tower_steps * plan.tower_batch * 3 + pictures
    result = train_tower(
        plan.vision,
        pools["train"],
        pools["test"],
        steps=plan.tower_steps,
        batch_size=plan.tower_batch,
        learning_rate=plan.tower_rate,
        log_every=25,
        on_log=lambda step, loss: report(step * plan.tower_batch * 3, total, f"loss {loss:.3f}"),
    )
    params = jax.device_get(result.params)
    fingerprint = tower_fingerprint(params, plan.vision, DataConfig())
    save_params(tower_run(out, plan), {"vision": params})
    done = plan.tower_steps * plan.tower_batch * 3
    run = feature_fn(plan.vision, params)
    for pool in (p for group in pools.values() for p in group):

        def show(pictures: int, before: int = done) -> None:
            report(before + pictures, total, "features")

        write_features(pool, run, 128, fingerprint, show)
        done += len(pool.images)
    return {"accuracy": result.accuracy, "loss": result.loss, "fingerprint": fingerprint}


def tower_run(out: str, plan: Plan) -> RunConfig:
    """The run directory that holds the tower's parameters."""
    cell = Cell(plan.decoders[0].name, plan.visual_tokens[0], 0)
    return RunConfig(out=f"{out}/tower", model=model_config(plan, cell, 8))


def train_language(out: str, plan: Plan, name: str, report: Report) -> dict[str, Any]:
    """Trains one decoder as a plain language model on the corpus."""
    model = any_model(out, plan, name)
    config = run_config(
        f"{out}/language/{name}", model, corpus_data(out), 0, plan.language_steps, plan.language_rate, plan, 0
    )
    return {"loss": run_stage(config, report, 0, config.train.steps, "language")}


def train_baseline(out: str, plan: Plan, name: str, report: Report) -> dict[str, Any]:
    """Trains one decoder on the questions without the pictures, then answers the test questions."""
    model, steps = any_model(out, plan, name), plan.stage2_steps
    config = run_config(
        f"{out}/baseline/{name}",
        model,
        blind_data(out, "train"),
        0,
        steps,
        plan.stage2_rate,
        plan,
        0,
        init_from=f"{out}/language/{name}",
    )
    losses = run_stage(config, report, 0, steps, "question only")
    scores, _ = answer(model, blind_data(out, "test"), config.out)
    return {"decoder": name, "seed": 0, "loss": losses, **scores}


def train_cell(out: str, plan: Plan, cell: Cell, report: Report) -> dict[str, Any]:
    """Stage 1, stage 2, and greedy answers to the test questions of one cell of the grid."""
    started = time.time()
    model = model_config(plan, cell, len(load_tokenizer(f"{out}/data/tokenizer")))
    run, losses = train_stages(out, plan, model, cell.decoder, cell.seed, f"{out}/cells/{cell.name}", report)
    trained = time.time() - started
    report(10, 11, "answers")
    scores, answers = answer(model, picture_data(out, "test", cell.visual_tokens), run)
    return {
        "decoder": cell.decoder,
        "visual_tokens": cell.visual_tokens,
        "seed": cell.seed,
        "query": cell.query,
        **scores,
        "params": decoder_params(model.decoder),
        "flops_per_question": flops_per_question(out, model, answers),
        "train_seconds": trained,
        "loss": losses,
        "samples": save_samples(out, cell, answers),
    }


def train_stages(
    out: str, plan: Plan, model: ModelConfig, decoder: str, seed: int, base: str, report: Report
) -> tuple[str, dict[str, list[list[float]]]]:
    """Both stages of one model, from the plan's language model of that name and its tower.

    Returns:
      The directory of stage 2's run, and the loss curve of each stage.
    """
    data = picture_data(out, "train", model.visual_tokens)
    losses, source = {}, f"{out}/language/{decoder}"
    # A tenth is left for what follows.
    total = (plan.stage1_steps + plan.stage2_steps) * 1.1
    stages: tuple[tuple[Literal[1, 2], int, float], ...] = (
        (1, plan.stage1_steps, plan.stage1_rate),
        (2, plan.stage2_steps, plan.stage2_rate),
    )
    for stage, steps, rate in stages:
        config = run_config(
            f"{base}/stage{stage}",
            model,
            data,
            stage,
            steps,
            rate,
            plan,
            seed,
            init_from=source,
            tower_from=f"{out}/tower",
        )
        losses[f"stage{stage}"] = run_stage(
            config, report, plan.stage1_steps * (stage == 2), total, f"stage {stage}"
        )
        source = config.out
    return source, losses


def measure_attention(out: str, plan: Plan, report: Report) -> list[dict[str, Any]]:
    """Share of the attention that falls on the cell a question names, for the models at V = 1.

    The average over heads and questions of each kind; 1 / m^2 is what looking everywhere alike gives.
    """
    found, chosen = [], [c for c in cells(plan) if c.visual_tokens == 1]
    m = plan.side
    cell_of_patch = label_grid(np.arange(m * m).reshape(m, m, 1), plan.vision.grid)[..., 0]
    for number, cell in enumerate(chosen):
        report(number, len(chosen), cell.name)
        config, params = load_params(f"{out}/cells/{cell.name}/stage2")
        shares: dict[str, list[float]] = {}
        for row, weights in attention_maps(config.model, picture_data(out, "test", 1), params):
            if place := asked_cell(row["conversations"][0]["value"]):
                inside = cell_of_patch == place[0] * m + place[1]
                shares.setdefault(row["kind"], []).append(float(weights[0, 0][:, inside].sum(-1).mean()))
        kinds = {kind: [float(np.mean(x)), len(x)] for kind, x in shares.items()}
        found.append({"decoder": cell.decoder, "seed": cell.seed, "query": cell.query, "kinds": kinds})
    return found


def any_model(out: str, plan: Plan, name: str) -> ModelConfig:
    """A model whose decoder is of that size; its compressor plays no part in text-only runs."""
    return model_config(plan, Cell(name, 1, 0), len(load_tokenizer(f"{out}/data/tokenizer")))


def run_stage(config: RunConfig, report: Report, before: float, total: float, note: str) -> list[list[float]]:
    """Trains one run, or continues it, and returns its whole loss curve [[step, loss], ...]."""
    train(config, progress=lambda r: report(before + r["step"], total, f"{note}, loss {r['loss']:.3f}"))
    lines = Path(config.out, "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [[r["step"], r["loss"]] for r in records]


def answer(model: ModelConfig, data: DataConfig, run: str) -> tuple[dict[str, Any], list[Answer]]:
    """Scores of a run's answers by task and by kind of question, and the answers."""
    _, params = load_params(run)
    answers = predict(model, data, params, max_new_tokens=ANSWER_TOKENS, batch_size=200)
    by_task = accuracy(answers, lambda a: a.row["kind"].split("/")[0])
    by_kind = accuracy(answers, lambda a: a.row["kind"])
    return {
        "scores": {t: share for t, (share, _) in by_task.items()},
        "counts": {t: count for t, (_, count) in by_task.items()},
        "kinds": {k: list(v) for k, v in by_kind.items()},
    }, answers


def flops_per_question(out: str, model: ModelConfig, answers: list[Answer]) -> dict[str, float]:
    """Mean FLOPs of answering a test question of each task, tower included."""
    tokenizer, data = load_tokenizer(f"{out}/data/tokenizer"), picture_data(out, "test", model.visual_tokens)
    sums: dict[str, list[float]] = {t: [] for t in TASKS}
    for a in answers:
        asked, reply = prompt(a.question, 1, tokenizer, data, model.visual_tokens), tokenizer.encode(a.truth)
        text = len(asked["tokens"]) - model.visual_tokens
        parts = answer_flops(model, question=len(asked["query"]), prompt=text, answer=len(reply) + 1)
        sums[a.row["kind"].split("/")[0]].append(sum(parts.values()))
    return {t: float(np.mean(v)) for t, v in sums.items()}


def save_samples(out: str, cell: Cell, answers: list[Answer]) -> list[dict[str, Any]]:
    """A few answered test questions per task, the same questions for every cell, with their pictures."""
    folder = Path(out, "samples")
    folder.mkdir(exist_ok=True)
    chosen = []
    for task in TASKS:
        mine = [a for a in answers if a.row["kind"].startswith(task)]
        picks = np.random.default_rng(0).permutation(len(mine))[:SAMPLES]
        pool = read_pool(f"{out}/data/{task}-test")
        for a in (mine[i] for i in picks):
            name = f"{task}-{a.row['image']}.png"
            if not (folder / name).exists():
                aside = folder / f".{os.getpid()}-{name}"
                Image.fromarray(pool.images[a.row["image"]]).save(aside)
                os.replace(aside, folder / name)
            chosen.append(
                {
                    "task": task,
                    "kind": a.row["kind"],
                    "image": f"samples/{name}",
                    "question": a.question,
                    "prediction": a.prediction,
                    "truth": a.truth,
                    "correct": is_exact(a),
                    "decoder": cell.decoder,
                    "visual_tokens": cell.visual_tokens,
                }
            )
    return chosen
