"""A row of our own beside the paper's, with a verdict for each cell.

A cell's tolerance is twice the binomial standard error of the paper's score at the benchmark's number of questions: two
equal models, asked about other questions of the same kind, would mostly differ by less. It says nothing of how far the
same training goes apart under another seed, of which the paper has no figure. Where a score is a mean of shares (VQAv2,
VizWiz, TextVQA) or questions share an image (POPE, GQA) that is a rough figure, in the first case one that is too wide.
MME adds up ten categories; there an image counts as right or wrong as a whole, equally often in each of them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from quecc_jax.errors import UserError
from quecc_jax.evaluate.published import published
from quecc_jax.evaluate.results import Results
from quecc_jax.evaluate.tasks import TASKS as EVERY
from quecc_jax.evaluate.tasks.base import Task
from quecc_jax.experiments.reproduce import fetch
from quecc_jax.experiments.reproduce.steps import TASKS
from quecc_jax.records import Finite, read_record, write_record

Word = Literal["within", "above", "below", "not run", "to upload"]
MME_IMAGES = (30, 30, 30, 30, 147, 170, 200, 200, 200, 20)
"""Images of each category of perception (Fu et al. 2023, "MME", table 1: two questions on each)."""
COUNTED = {"mmbench": 1164, "scienceqa": 2017}
"""Questions that a score counts, where a task does not say so itself: MMBench dev without rotations
(github.com/open-compass/mmbench), ScienceQA's with an image."""
HIGHEST = {"mme": 2000.0}
"""The best score; 100 where nothing is said."""


class Cell(NamedTuple):
    """One benchmark."""

    column: str
    task: str
    paper: float
    tolerance: float
    ours: float | None
    verdict: Word
    note: str = ""
    """What to do, or to know."""


class GivenScore(TypedDict):
    """A score that a benchmark's server gave."""

    score: Finite
    upload: str
    """SHA-256 of the file that it is of."""


def tolerance(task: str, score: float) -> float:
    """Twice the standard error of a score, see above; in its units."""
    if task == "mme":
        share = score / 2000
        return 2 * 200 * math.sqrt(share * (1 - share) * sum(1 / n for n in MME_IMAGES))
    questions = COUNTED.get(task) or EVERY[task].questions
    assert questions is not None
    share = score / 100
    return 2 * 100 * math.sqrt(share * (1 - share) / questions)


def cells(
    visual_tokens: int, results: Results | None, given: Mapping[str, GivenScore], folder: Path
) -> list[Cell]:
    """The cells of the paper's row of QueCC, in its order.

    Args:
      results: of our benchmarks, as far as they have run.
      given: scores of servers by task.
      folder: where the benchmarks' answers lie.
    """
    paper = next(
        row["scores"]
        for row in published()["rows"]
        if row["method"] == "QueCC" and row["visual_tokens"] == visual_tokens
    )
    return [
        _cell(EVERY[task], paper[EVERY[task].column], results, given.get(task), folder / task)
        for column in paper
        for task in TASKS
        if EVERY[task].column == column
    ]


def _cell(task: Task, paper: float, results: Results | None, given: GivenScore | None, folder: Path) -> Cell:
    wide = tolerance(task.name, paper)
    ours, note, word = None, "", "not run"
    done = results["tasks"].get(task.name) if results else None
    if done is not None and done["headline"] is not None:
        ours, note = done["metrics"][done["headline"]]["value"], task.note
    elif done is not None and task.submit:
        word = "to upload"
        upload = upload_of(task, folder)
        note = f"upload {upload} to {task.submit.partition(' to ')[2]}, then --score {task.name}=SCORE"
        if given is not None:
            if upload.is_file() and given["upload"] == fetch.sha256(upload):
                ours, note = given["score"], "as its server says"
            else:
                note = f"its score is of other answers; {note}"
    if ours is not None:
        word = "within" if abs(ours - paper) <= wide else "above" if ours > paper else "below"
    return Cell(task.column, task.name, paper, wide, ours, word, note)  # type: ignore[arg-type]


def upload_of(task: Task, folder: Path) -> Path:
    """The file that a benchmark's server takes."""
    return folder / task.submit.partition(" ")[0]


def read_given(file: Path) -> dict[str, GivenScore]:
    """Scores of servers that were given; none where there is no file.

    Raises:
      Damaged: it does not hold what was written.
    """
    try:
        return read_record(file, dict[str, GivenScore], "delete it and give the scores again")
    except FileNotFoundError:
        return {}


def give(file: Path, told: str, folder: Path) -> None:
    """Keeps a score of a server.

    Args:
      told: TASK=SCORE.
      folder: where the benchmarks' answers lie.

    Raises:
      UserError: it is another text, of no benchmark that a server scores, out of range, or nothing was uploaded.
    """
    name, equals, text = told.partition("=")
    servers = [one for one in TASKS if EVERY[one].submit]
    if not equals or name not in servers:
        why = (
            f"{name} is scored here, not by a server"
            if equals and name in TASKS
            else "that is TASK=SCORE of no server"
        )
        raise UserError(
            f"--score {told}: {why}; give one of {', '.join(servers)}, such as {servers[-1]}=76.1"
        )
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 100:
        raise UserError(f"--score {told}: {text!r} is no score from 0 to 100")
    upload = upload_of(EVERY[name], folder / name)
    if not upload.is_file():
        raise UserError(
            f"--score {told}: {upload} is not there, so nothing can have been uploaded; evaluate first"
        )
    kept = read_given(file)
    kept[name] = {"score": score, "upload": fetch.sha256(upload)}
    write_record(file, kept)


def markdown(found: list[Cell], visual_tokens: int, stand_in: bool) -> str:
    """The two rows and the verdicts as a table in Markdown, notes below it."""
    heads = ["", *(one.column for one in found)]
    paper = [
        f"paper, QueCC, V = {visual_tokens}",
        *(f"{one.paper:.1f} ± {one.tolerance:.1f}" for one in found),
    ]
    ours = ["ours", *("–" if one.ours is None else f"{one.ours:.1f}" for one in found)]
    words = ["verdict", *(one.verdict for one in found)]
    rows = [heads, ["---", *["---:"] * len(found)], paper, ours, words]
    table = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    notes = [f"{one.column}: {one.note}." for one in found if one.note]
    if stand_in:
        notes.insert(0, "A rehearsal: a small model on stand-in data; its scores mean nothing.")
    notes.append(
        "±: twice the binomial standard error of the paper's score at the benchmark's number of questions, without the "
        "spread of seeds."
    )
    return table + "".join(f"\n{note}\n" for note in notes)


def record(found: list[Cell], visual_tokens: int, stand_in: bool) -> dict[str, object]:
    """The same for programs."""
    plain = [one._asdict() for one in found]
    return {"visual_tokens": visual_tokens, "rehearsal": stand_in, "cells": plain}
