"""Every page that the project makes, small, by the code that makes it for its users."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from quecc_jax.commands.grid_law import law_section
from quecc_jax.data.preview.page import page
from quecc_jax.data.preview.rows import look
from quecc_jax.evaluate.comparison.compare import compare
from quecc_jax.evaluate.comparison.page import write_page
from quecc_jax.evaluate.failures_page import write_failures
from quecc_jax.evaluate.tasks import TASKS
from quecc_jax.evaluate.tasks.base import Judged
from quecc_jax.experiments.report import write_report
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits
from quecc_jax.load import load_engine
from quecc_jax.records import write_record
from quecc_jax.serve.backend import Backend
from quecc_jax.serve.chat_page import Page
from quecc_jax.serve.own_backend import own_backend
from quecc_jax.serve.web.bounds import Bounds
from scaling.__main__ import main
from tests.commands.synthetic import make_results
from tests.commands.test_inspect_data import batched, coloured_rows
from tests.evaluate.standins import STANDINS
from tests.evaluate.test_compare import benchmark
from tests.experiments.test_compressors import results as compressors_results
from tests.scaling.efficiency_files import efficiency_record
from tests.serve.serving import front_of, served

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTIONS = [f"what color is the shape in row {row}, column 1?" for row in (1, 2)]


def sizes(folder: Path) -> list[Path]:
    """The report of a study, with its laws."""
    results = make_results(folder, seeds=2)
    return [write_report(results, folder, law_section(results, folder))]


def compressors(folder: Path) -> list[Path]:
    """The report on compressors."""
    results = compressors_results("QueCC+, which asks the question once more")
    results["seconds"] = {"data": 20.0, "cells": 40.0, "total": 60.0}
    return [write_report(results, folder)]


def law(folder: Path) -> list[Path]:
    """A fit of the published table, a plan by it with every column that a plan can have, a proposal and a joint fit."""
    fit, plan = str(folder / "fit"), str(folder / "plan")
    few = ["--refits", "40", "--starts", "8"]
    main(["fit", "--scores", "ocr", "--out", fit, *few])
    write_record(folder / "stages.json", efficiency_record(lambda *_: 0.9))
    machine = ["--chip", "h100", "--batch", "4", "--ms", "60", "--efficiency", str(folder / "stages.json")]
    main(["plan", "--fit", fit, "--out", plan, "--llms", "0.5", "1.8", "4", "7", *machine])
    candidates = ["--flops", "3e12", "--llms", "0.5", "4", "14", "--count", "2"]
    main(["next", "--fit", fit, "--out", str(folder / "next"), *candidates])
    main(["joint", "--scores", "general=general", "ocr=ocr", "--out", str(folder / "joint")])
    names = ("fit", "plan", "next", "joint")
    return [folder / name / f"{name}.html" for name in names]


def data(folder: Path) -> list[Path]:
    """The rows that the model gets, one of them left out."""
    out = folder / "data.html"
    out.write_text(page(look(batched(coloured_rows(folder), "packed"), 6)))
    return [out]


def failures(folder: Path) -> list[Path]:
    """Wrong answers of three benchmarks."""
    judged = {}
    for name in ("pope", "mmbench", "vizwiz"):
        STANDINS[name](folder)
        samples = TASKS[name].load(folder)
        judged[name] = [Judged(sample, "maybe", *TASKS[name].judge(sample, "maybe")) for sample in samples]
    tasks = {name: {"about": name, "headline": "accuracy", "metrics": {}} for name in judged}
    results: Any = {"model": "tiny", "visual_tokens": 1, "tasks": tasks}
    write_failures(folder / "failures.html", results, judged)
    return [folder / "failures.html"]


def comparison(folder: Path) -> list[Path]:
    """Models on two benchmarks, and what they keep of another."""
    made = []
    for name, count in (("a model of a long name", 4), ("b", 8), ("full", 10), ("small", 3)):
        for task in ("gqa", "chartqa"):
            benchmark(folder / name, set(range(count)), task=task)
        made.append(folder / name)
    *models, full, small = made
    return [write_page(compare(models, full, [small], 200), folder / "out")]


FILES: dict[str, Callable[[Path], list[Path]]] = {
    make.__name__: make for make in (sizes, compressors, law, data, failures, comparison)
}


@contextlib.contextmanager
def chat(backend: Callable[[Engine], Backend] = own_backend) -> Iterator[int]:
    """The port of the chat with the example's model, whose sixteen visual tokens look at a square each."""
    engine = load_engine(EXAMPLES / "model", visual_tokens=16)
    front = front_of(backend(engine), Bounds(), Limits(8))
    image = (EXAMPLES / "mosaic-1.png").read_bytes()
    with served(front, Page(front, "own", image, QUESTIONS)) as port:
        yield port


@contextlib.contextmanager
def addresses(name: str, folder: Path) -> Iterator[list[str]]:
    """Where the pages of one of FILES lie, or the chat is served."""
    if name in FILES:
        yield [path.as_uri() for path in FILES[name](folder)]
        return
    with chat() as port:
        yield [f"http://127.0.0.1:{port}/"]
