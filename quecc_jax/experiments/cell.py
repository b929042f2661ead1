"""One cell of a grid: its training runs one after another, then its tests, as rows of results."""

import dataclasses
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import jax
import numpy as np
from PIL import Image

from quecc_jax.config import DataConfig, ModelConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.sources.pool import read_pool
from quecc_jax.data.text.conversation import lay_out
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.data.text.turns import asking, read_row
from quecc_jax.errors import UserError
from quecc_jax.evaluate import benchmarks
from quecc_jax.evaluate.answers import Answer, answer_rows
from quecc_jax.evaluate.score import is_exact, standard_error, write_scored
from quecc_jax.experiments.grid import Benchmarks, Cell, Grid, Test
from quecc_jax.experiments.results import CellResult, Curve, Row, Sample
from quecc_jax.experiments.worker import Report
from quecc_jax.flops import answer_flops, decoder_params
from quecc_jax.generate.questions import Query
from quecc_jax.generate.stand_ins import with_dtype
from quecc_jax.groups import group_of
from quecc_jax.load import load_vlm
from quecc_jax.paths import remove, replacing
from quecc_jax.train.logs.records import read_records
from quecc_jax.train.loop import train


def run_cell(grid: Grid, cell: Cell, report: Report) -> CellResult:
    """Trains and tests one model."""
    started, losses, before = time.time(), dict[str, Curve](), 0
    runs = [with_vocabulary(run) for run in cell.runs]
    # A tenth is left for the tests.
    total = 1.1 * sum(run.train.steps for run in runs)
    for run in runs:
        stage = run.train.stage
        losses[f"stage{stage}"] = run_stage(run, report, before, total, f"stage {stage}" if stage else "text")
        before += run.train.steps
    trained = time.time() - started
    report(before, total, "tests")
    last, rows, samples = runs[-1], list[Row](), list[Sample]()
    spreads = dict(cell.seed_spreads)
    curve = losses[f"stage{last.train.stage}"]
    about = Row(
        cell=cell.name,
        llm=cell.llm,
        params_b=cell.params_b or decoder_params(last.model.decoder) / 1e9,
        compressor=cell.compressor,
        query=cell.query,
        part=cell.part,
        seed=cell.seed,
        loss=curve[-1][1] if curve else None,
        train_seconds=trained,
    )
    for v in cell.visual_tokens or (0,):
        model = at_visual_tokens(last.model, v)
        here: Row = {**about, "visual_tokens": model.visual_tokens if last.data.images_per_row else 0}
        for test in cell.tests:
            data, answers = ask(last, model, test)
            for row in _scored(test, answers, model, data):
                known = spreads.get(f"{row['task']}/{row['kind']}")
                rows.append({**here, **row, **({} if known is None else {"seed_spread": known})})
            if jax.process_index() == 0:
                _keep(grid, cell, here["visual_tokens"], test, answers)
            if cell.samples:
                samples += _samples(grid.out, cell, model.visual_tokens, test, answers)
        if cell.benchmarks:
            rows += [{**here, **row} for row in _benchmarked(cell.benchmarks, last)]
    if not cell.keep and jax.process_index() == 0:
        for run in runs:
            remove(run.out)
    return {"rows": rows, "losses": losses, "samples": samples}


def with_vocabulary(run: RunConfig) -> RunConfig:
    """The run with its decoder's vocab_size counted, where it is left to the tokenizer.

    Raises:
      UserError: the tokenizer cannot be read.
    """
    if run.model.decoder.vocab_size:
        return run
    decoder = dataclasses.replace(run.model.decoder, vocab_size=len(load_tokenizer(run.data.tokenizer)))
    return dataclasses.replace(run, model=dataclasses.replace(run.model, decoder=decoder))


def run_stage(run: RunConfig, report: Report, before: float, total: float, note: str) -> Curve:
    """Trains one run, or continues it, and returns its whole loss curve; of several processes to the first alone."""
    train(run, progress=lambda r: report(before + r["step"], total, f"{note}, loss {r['loss']:.3f}"))
    records = read_records(run.out) if jax.process_index() == 0 else []
    return [[record["step"], record["loss"]] for record in records]


def ask(run: RunConfig, model: ModelConfig, test: Test) -> tuple[DataConfig, list[Answer]]:
    """Greedy answers of a trained run, as `model` and on the run's mesh, to a test; and the data settings they were
    asked by."""
    data = dataclasses.replace(
        run.data,
        sources=test.sources,
        # Rows hold the text that they held in training, whatever V is.
        max_length=run.data.max_length - (run.model.visual_tokens - model.visual_tokens),
        cached_features=test.cached_features,
        cached_queries=False,
    )
    group = group_of(run.mesh)
    params = load_vlm(
        run.out, group.mesh, weights=test.weights, merge=False, towers=not test.cached_features
    )[1]
    asked = with_dtype(dataclasses.replace(run, model=model, data=data), test.weights)
    longest, size = test.max_new_tokens, test.batch_size
    return data, answer_rows(
        asked,
        params,
        max_new_tokens=longest,
        batch_size=size,
        group=group,
        turns=test.turns,
        query=test.query,
    )


def _scored(test: Test, answers: list[Answer], model: ModelConfig, data: DataConfig) -> Iterator[Row]:
    """A row for every kind of question of a test."""
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        task, _, kind = answer.row["kind"].partition("/") if not test.task else (test.task, "", "")
        kind += "-later" * (answer.turn > 1)
        groups.setdefault((task, kind), []).append(answer)
    for (task, kind), group in groups.items():
        right = sum(map(is_exact, group))
        yield {
            "task": task,
            "kind": kind,
            "correct": right,
            "n": len(group),
            "score": right / len(group),
            "stderr": standard_error(right / len(group), len(group)),
            "flops": question_flops(model, data, group, test.query) if test.count_flops else None,
            "cut_questions": sum(answer.question_cut for answer in group),
        }


def _keep(grid: Grid, cell: Cell, visual_tokens: int, test: Test, answers: list[Answer]) -> None:
    """Every answer to OUT/answers, as launch.evaluate keeps them, for launch.compare."""
    name = f"{cell.name}-v{visual_tokens}" + (f"-{test.task}" if test.task else "")
    about = {
        "checkpoint": cell.name,
        "data": test.task or grid.name,
        "max_new_tokens": test.max_new_tokens,
        "visual_tokens": visual_tokens,
        "weights": test.weights,
        "turns": test.turns,
        "query": test.query,
    }
    write_scored(Path(grid.out, "answers", name), answers, about)


def question_flops(
    model: ModelConfig, data: DataConfig, answers: list[Answer], query: Query = "own"
) -> float:
    """Mean FLOPs of these answers to questions about one image, tower and what was said before included."""
    tokenizer, total = load_tokenizer(data.tokenizer), 0.0
    for a in answers:
        said = read_row(a.row).turns[: 2 * a.turn - 2]
        conversation = asking(a.question, 1, said, latest=query == "latest")
        asked = lay_out(conversation, tokenizer, data, model.visual_tokens)
        text, reply = len(asked.codes) - model.visual_tokens, tokenizer.encode(a.truth)
        parts = answer_flops(model, question=len(asked.queries), prompt=text, answer=len(reply) + 1)
        total += sum(parts.values())
    return total / len(answers)


def _benchmarked(asked: Benchmarks, run: RunConfig) -> Iterator[Row]:
    """A row for every benchmark: its headline metric, 0..1.

    Raises:
      UserError: a server scores one of them.
    """
    results = benchmarks.run(
        Path(run.out),
        asked.names,
        Path(asked.data),
        Path(run.out, "benchmarks"),
        batch_size=asked.batch_size,
        weights=asked.weights,
        mesh=run.mesh,
    )
    for name, task in results["tasks"].items():
        if task["headline"] is None:
            raise UserError(f"benchmark {name} is scored by a server; take it out of the grid")
        metric = task["metrics"][task["headline"]]
        # MME's perception counts to 2,000, all others in percent.
        top = 2000.0 if name == "mme" else 100.0
        error = (metric["standard_error"] or 0.0) / top
        yield {"task": name, "kind": "", "score": metric["value"] / top, "stderr": error, "flops": None}


def _samples(out: str, cell: Cell, visual_tokens: int, test: Test, answers: list[Answer]) -> Iterator[Sample]:
    """A few answered questions per task, the same questions for every cell, with their images."""
    for pool in (read_pool(source.path) for source in test.sources):
        task = pool.meta["task"]
        mine = [a for a in answers if a.row["kind"].startswith(task)]
        for number in np.random.default_rng(0).permutation(len(mine))[: cell.samples]:
            answer = mine[number]
            image = answer.row["image"]
            yield {
                "task": task,
                "kind": answer.row["kind"],
                **sample_image(out, f"samples/{task}-{image}.png", pool.images[image]),
                "question": answer.question,
                "prediction": answer.prediction,
                "truth": answer.truth,
                "llm": cell.llm,
                "visual_tokens": visual_tokens,
            }


class SampleImage(TypedDict):
    """Parts of a `Sample`."""

    image: str
    crc32: int


def sample_image(out: str, name: str, pixels: np.ndarray) -> SampleImage:
    """Writes an image of a grid's samples, unless it is there, and returns what a sample says of it."""
    file = Path(out, name)
    if not file.exists():
        with replacing(file) as aside:
            Image.fromarray(pixels).save(aside, "png")
    return {"image": name, "crc32": zlib.crc32(file.read_bytes())}
