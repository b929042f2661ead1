"""Stores of JSON: what grids, fits, evaluations and logs keep.

Where people name the file itself, as of a fit, another file there is another fit and no damage; `make` writes the same
for every seed then.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from quecc_jax.config import DataConfig
from quecc_jax.data.bad_rows import LeftOut, Tally
from quecc_jax.errors import UserError
from quecc_jax.evaluate.kept_answers import ANSWERS, Answer, check_settings, line_of, read_answers
from quecc_jax.evaluate.tasks.base import Sample
from quecc_jax.experiments import attempts, store
from quecc_jax.experiments.cell import sample_image
from quecc_jax.experiments.grid import Grid
from quecc_jax.experiments.grid import Step as GridStep
from quecc_jax.experiments.reproduce import run, stamps, verdict
from quecc_jax.experiments.reproduce.downloads import Download, Remote
from quecc_jax.experiments.reproduce.steps import TASKS, Step
from quecc_jax.experiments.results import Results, read_results
from quecc_jax.experiments.sizes_report import sample_uri
from quecc_jax.experiments.stats import scores_record
from quecc_jax.records import write_record
from quecc_jax.train.logs.data_report import DataReport
from quecc_jax.train.logs.records import Records, read_records
from scaling.efficiency.record import read_efficiency
from scaling.saved_fit import load_fit, save_fit
from scaling.scores import read_scores
from tests.experiments.reproduce.test_run import SCORED
from tests.scaling.efficiency_files import efficiency_record
from tests.stores import Store
from tests.train.test_progress import record

FIT = Path(__file__).parent / "compat" / "v0_1" / "fit" / "fit.json"


def _grid(folder: Path, seed: int = 0) -> Grid:
    steps = tuple(GridStep(name, "tests.experiments.fake_jobs:note") for name in "abc")
    return Grid("fake", str(folder), (), steps, query_tokens=float(seed))


def make_grid(folder: Path, seed: int) -> None:
    grid = _grid(folder, seed)
    store.claim(grid)
    store.add_seconds(grid, 12.5 + seed)
    for number, step in enumerate(grid.steps):
        store.write_result(grid, step.name, 1.5, {"found": [number, seed]})


def read_grid(folder: Path) -> Any:
    """As a start of the grid does, whose jobs find the same again."""
    grid = _grid(folder)
    store.claim(grid)
    (folder / "jobs").mkdir(exist_ok=True)
    store.set_damaged_aside(grid)
    for number, step in enumerate(grid.steps):
        if not store.result_file(grid, step.name).is_file():
            store.write_result(grid, step.name, 1.5, {"found": [number, 0]})
    store.add_seconds(grid, 1.0)
    return store.started(grid), store.total_seconds(grid), store.finished(grid)


def make_attempts(folder: Path, seed: int) -> None:
    grid = _grid(folder, seed)
    for number, step in enumerate(grid.steps):
        for _ in range(number + 1):
            with attempts.attempt(grid, step.name, number + 1, lambda _: "failed"):
                pass


def read_attempts(folder: Path) -> Any:
    """What is kept of every step; where nothing is, as of one that was never tried, the file was there."""
    grid = _grid(folder)
    for step in grid.steps:
        if not (folder / "attempts" / f"{step.name}.json").exists():
            raise UserError(f"{folder} has no attempts at {step.name}")
    return [attempts.read_attempts(grid, step.name) for step in grid.steps]


def make_results(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    samples = [
        {
            "task": "mosaic",
            "kind": "mosaic/cell",
            **sample_image(str(folder), f"samples/mosaic-{number}.png", image),
            "question": f"what is <{number}>?",
            "prediction": "red",
            "truth": "blue",
            "llm": "M",
            "visual_tokens": 4,
        }
        for number, image in enumerate(images)
    ]
    results = Results(
        grid="demo",
        command="python -m launch.demo",
        machine="a machine",
        started="2026-01-31T12:00:00",
        seconds={"total": 60.0, "cells": 40},
        visual_tokens=[1, 4],
        seeds=[0],
        llms=[{"name": "M", "width": 128, "depth": 4, "params": 1_050_000}],
        own="",
        stages=[[1, 200, 16], [2, 2500, 16]],
        models=2,
        rows=[
            {"cell": f"M-v{v}", "llm": "M", "visual_tokens": v, "task": "mosaic", "score": 0.25}
            for v in (1, 4)
        ],
        losses={"M-v1": {"stage1": [[10, 2.5], [20, None]]}},
        samples=samples,  # type: ignore[typeddict-item]
        steps={"data": {"side": 2, "prompt_tokens": 30.0, "vocabulary": 100}},
        fits={"mosaic": {"A": 0.5, "alpha": 0.25}},
    )
    write_record(folder / "results.json", results)


def read_whole_results(folder: Path) -> Any:
    results = read_results(folder / "results.json")
    return results, [sample_uri(folder / one["image"], one.get("crc32")) for one in results["samples"]]


def make_fit(folder: Path, seed: int) -> None:
    save_fit(folder / "fit.json", json.loads(FIT.read_text()))


def read_fit(folder: Path) -> Any:
    return load_fit(str(folder))


def make_efficiency(folder: Path, seed: int) -> None:
    write_record(folder / "stages.json", efficiency_record(lambda part, batch, length: batch / length))


def read_stages(folder: Path) -> Any:
    found = read_efficiency(folder / "stages.json")
    return found.chip, found.model, found[3:]


def make_scores(folder: Path, seed: int) -> None:
    rows: Any = [
        {
            "params_b": n,
            "visual_tokens": v,
            "seed": s,
            "query": "question",
            "task": task,
            "kind": "",
            "score": 0.3 + n / 100 + v / 1000 + s / 50,
            "stderr": 0.01,
        }
        for n in (0.5, 7.0)
        for v in (4, 36)
        for s in (0, 1)
        for task in ("one", "two")
    ]
    write_record(folder / "scores.json", scores_record(rows, {0.5, 7.0}, (4, 36), 12.0, "s", "a sweep"))


def read_whole_scores(folder: Path) -> Any:
    return dataclasses.asdict(read_scores(folder))


def make_evaluation(folder: Path, seed: int) -> None:
    """Results on benchmarks, as `launch.evaluate` writes them; the others of the table lie elsewhere."""
    beside = folder.parent / "evaluations"
    beside.mkdir(exist_ok=True)
    for number, file in enumerate([folder / "results.json", *(beside / f"{k}.json" for k in "abc")]):
        metrics = {"f1": {"value": 40.0 + 3 * number**2, "standard_error": 1.5}}
        task = {"headline": "f1", "metrics": metrics, "questions": 12, "scorer": {"name": "pope"}}
        told = {
            "model": "m",
            "checkpoint": "runs/m",
            "visual_tokens": (4, 36)[number % 2],
            "tasks": {"pope": task},
        }
        write_record(file, told)


def read_evaluation(folder: Path) -> Any:
    beside = folder.parent / "evaluations"
    sources = [f"{folder}@7B", f"{beside}/a.json@7B", f"{beside}/b.json@1B", f"{beside}/c.json@1B"]
    return dataclasses.asdict(read_scores(*sources))


SAMPLES = [Sample(number, (f"{number}.png",), f"what is {number}?", "red", {}) for number in range(4)]


def settings(task: str, seed: int = 0) -> dict[str, str | int]:
    """Those that answers of a model are kept with."""
    return {
        "task": task,
        "model": f"model-{seed}",
        "visual_tokens": 4,
        "max_new_tokens": 3,
        "template": "v1",
        "dtype": "float32",
        "image_aspect": "pad",
        "image_decoding": "upright",
        "query": "question",
        "query_length": 64,
    }


def _answer(sample: Sample, task: str, seed: int = 0) -> Answer:
    said = f"{task} says {sample.id} and {seed}"
    return {"id": sample.id, "question": sample.prompt, "answer": said, "truth": sample.truth, "score": 0.5}


def make_answers(folder: Path, seed: int) -> None:
    for task in ("gqa", "pope"):
        check_settings(folder / task, settings(task, seed))
        lines = [line_of(_answer(sample, task, seed), settings(task, seed)) for sample in SAMPLES]
        (folder / task / ANSWERS).write_text("".join(line + "\n" for line in lines))


def read_both_answers(folder: Path) -> Any:
    """As a start of the benchmarks does, whose model answers the same again."""
    found = []
    for task in ("gqa", "pope"):
        (folder / task).mkdir(exist_ok=True)
        check_settings(folder / task, settings(task))
        kept = {answer["id"]: answer for answer in read_answers(folder / task, SAMPLES, settings(task))}
        found.append([kept.get(one.id) or _answer(one, task) for one in SAMPLES])
    return json.dumps(found, sort_keys=True)


def make_metrics(folder: Path, seed: int) -> None:
    with Records(folder, 0, 1) as records:
        for step in range(1, 5):
            records.write(record(step, loss=2.5 / step))


def read_metrics(folder: Path) -> Any:
    """As a run that goes on behind step 4 does."""
    with Records(folder, 4, 1):
        pass
    return json.dumps(read_records(folder), sort_keys=True)


def make_report(folder: Path, seed: int) -> None:
    tally = Tally(DataConfig(), 10)
    tally.left_out |= {k: LeftOut(k, "dropped", f"rows.json, row {k}: too long") for k in (3, 7)}
    tally.truncated |= {2: None, 5: None}  # type: ignore[operator]
    with DataReport(folder, 0, tally):
        pass


def read_report(folder: Path) -> Any:
    """As a run that goes on does, whose tally begins empty."""
    with DataReport(folder, 3, Tally(DataConfig(), 10)) as report:
        return json.dumps(report.record(), sort_keys=True)


ROWS = Download("rows", "", (Remote("rows.json", ""),), ("rows.json",))
KIT = (
    Step("rows", "", "download", (), "a", download=ROWS),
    Step("stage1", "", "train", ("rows",), "b", "runs/stage1", last=4),
    Step("evaluate", "", "evaluate", ("stage1",), "c", "runs/eval"),
)


def make_kit(folder: Path, seed: int) -> None:
    """A finished kit of table 1, with a score that a server gave."""
    one, answers = folder / "runs/stage1", folder / "runs/eval"
    (one / "checkpoints/4").mkdir(parents=True)
    (answers / "vqav2").mkdir(parents=True)
    (folder / "rows.json").write_text(f"rows {seed}")
    (one / "config.json").write_text("{}")
    (one / "checkpoints/4/checksums.json").write_text(f"{seed}")
    (answers / "vqav2/vqav2_upload.json").write_text(f"answers {seed}")
    sent = {**SCORED, "headline": None, "metrics": {}}
    about = {
        "model": "m",
        "checkpoint": "c",
        "visual_tokens": 16,
        "weights": "run",
        "limit": None,
        "seed": seed,
    }
    tasks = {task: sent if task in ("vqav2", "vizwiz") else SCORED for task in TASKS}
    write_record(
        answers / "results.json", {**about, "image_decoding": "original", "resamples": 1, "tasks": tasks}
    )
    for step in KIT:
        needs = stamps.needed(step, stamps.states_of(KIT, folder))
        files = run.bring(step, folder, run.How()) if step.download else {}
        made = run.digest_of_files(files) if step.download else stamps.digest(step, folder)
        stamps.write_stamp(folder, step, needs, made, time.time() - 60, files)
    verdict.give(answers / "servers.json", f"vqav2={70 + seed}", answers)


def read_kit(folder: Path) -> Any:
    """As a start of the kit does, which makes nothing again, and holds the score against the paper's."""
    for name, state in stamps.states_of(KIT, folder).items():
        if state.word != "done":
            raise UserError(f"{folder}: {name} is {state.word}: {state.why}")
    answers = folder / "runs/eval"
    found = verdict.cells(
        16, stamps.read_results(answers), verdict.read_given(answers / "servers.json"), answers
    )
    if found[-1].verdict == "to upload":
        raise UserError(f"{folder}: {found[-1].note}")
    return [one[:-1] for one in found]


STORES = (
    Store("kit of table 1", make_kit, read_kit),
    Store("grid", make_grid, read_grid),
    Store("attempts", make_attempts, read_attempts),
    Store("results of a grid", make_results, read_whole_results),
    Store("fit", make_fit, read_fit),
    Store("efficiencies", make_efficiency, read_stages),
    Store("scores", make_scores, read_whole_scores),
    Store("results on benchmarks", make_evaluation, read_evaluation),
    Store("answers to benchmarks", make_answers, read_both_answers),
    Store("metrics", make_metrics, read_metrics),
    Store("data report", make_report, read_report),
)
