"""What results.json holds: the rows of all models, their losses and sample answers, what each step found."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from quecc_jax.errors import UserError
from quecc_jax.json_text import parsed, reason
from quecc_jax.records import Count, Damaged, Finite, NonNegative, of_form, unsealed

Curve = list[Annotated[list[Finite | None], msgspec.Meta(min_length=2, max_length=2)]]
"""[[step, loss], ...]; None is a loss that was not finite."""


class Row(TypedDict, total=False):
    """What one model scored on one kind of question."""

    cell: str
    llm: str
    params_b: NonNegative
    """Billions of parameters by which the law counts it."""
    compressor: str
    query: str
    """`question`, or `zero` where the compressor was given zeros in its place."""
    part: str
    visual_tokens: Count
    """V; 0 of a model that sees no image."""
    seed: int
    task: str
    kind: str
    """Kind of question; empty where the task has one."""
    correct: Count
    """Right answers of `n`; a benchmark has its `score` alone."""
    n: Count
    score: Finite
    stderr: Finite
    """Of the test questions, without that over seeds."""
    seed_spread: NonNegative
    """Standard deviation of the share over seeds, where it was measured elsewhere."""
    flops: NonNegative | None
    """Of one answer, tower included."""
    loss: Finite | None
    """Last training loss."""
    cut_questions: Count
    train_seconds: NonNegative


class Sample(TypedDict):
    """One answered test question."""

    task: str
    kind: str
    image: str
    """Path of a PNG file inside the grid's directory."""
    crc32: NotRequired[Count]
    """Of that file."""
    question: str
    prediction: str
    truth: str
    llm: str
    visual_tokens: Count


class Llm(TypedDict):
    """A language model of the grid."""

    name: str
    width: Count
    depth: Count
    params: Count
    """Without embeddings."""


class DataRecord(TypedDict):
    """What the step `data` returns."""

    vocabulary: Count
    prompt_tokens: NonNegative
    """Mean number of text tokens of a test question."""
    side: Count
    """Cells along a side of an image."""


class TowerRecord(TypedDict):
    """What the step `tower` returns."""

    accuracy: dict[str, Finite]
    """By label, on test images."""
    loss: Curve


class AttentionRecord(TypedDict):
    """What the step `attention` returns of one model."""

    llm: str
    seed: int
    query: str
    kinds: dict[str, list[Finite]]
    """By kind of question: [share of attention on the cell that it names, number of questions]."""


class CostRecord(TypedDict):
    """What the step `timing` returns of one compressor, per image."""

    compressor: str
    visual_tokens: Count
    params: Count
    flops: NonNegative
    projector_flops: NonNegative
    query_flops: NonNegative
    milliseconds: NonNegative


class Steps(TypedDict, total=False):
    """What each step of a grid returned."""

    data: DataRecord
    tower: TowerRecord
    attention: list[AttentionRecord]
    timing: list[CostRecord]


class CellResult(TypedDict):
    """What a cell returns."""

    rows: list[Row]
    losses: dict[str, Curve]
    """By stage, as "stage1"."""
    samples: list[Sample]


class JobRecord(TypedDict):
    """What a finished job left."""

    seconds: NonNegative
    result: Any
    """A `CellResult`, or what a step returned."""


class Results(TypedDict):
    """What results.json holds."""

    grid: str
    command: str
    machine: str
    started: str
    seconds: dict[str, NonNegative]
    """By phase, summed over jobs; `total` is what passed."""
    visual_tokens: list[Count]
    seeds: list[int]
    llms: list[Llm]
    own: str
    stages: list[Annotated[list[Count], msgspec.Meta(min_length=3, max_length=3)]]
    """[stage, steps, batch size] of a model's training."""
    models: Count
    """Models that see images."""
    rows: list[Row]
    losses: dict[str, dict[str, Curve]]
    """By cell and stage."""
    samples: list[Sample]
    steps: Steps
    fits: dict[str, dict[str, Any]]
    """The record of each task's law, where one was fitted."""


def read_results(path: Path) -> Results:
    """A grid's results.json.

    Raises:
      UserError: it cannot be read, is damaged, or lacks what a report needs.
    """
    unread = f"cannot read results from {path}"
    if path.is_dir():
        raise UserError(f"{unread}, which is a folder; name the results.json of a grid")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{unread}: {problem.strerror}; name the results.json of a grid") from None
    except UnicodeDecodeError:
        raise UserError(f"{unread}, which is no text; name the results.json of a grid") from None
    if not text.strip():
        raise UserError(f"{unread}, which is empty; name the results.json of a grid")
    try:
        results = parsed(text)
    except ValueError as problem:
        raise UserError(f"{unread}, which is not valid JSON: {reason(problem)}") from None
    except RecursionError:
        raise UserError(f"{unread}, which is nested too deeply") from None
    if not isinstance(results, dict) or "score" in results:
        kind = "a scores file" if isinstance(results, dict) else "of something else"
        raise UserError(f"{unread}, which is {kind}; name the results.json of a grid")
    advice = "let the grid's command write it anew"
    plain = unsealed(results, str(path), advice)
    try:
        _refuse_missing(plain)
        found = of_form(plain, Results, str(path), advice)
        check_results(found)
    except Damaged:
        raise
    except UserError as error:
        raise error.at(str(path)) from None
    return found


def check_results(results: Mapping[str, Any]) -> None:
    """Raises UserError if a field that the report needs is absent or no cell is finished."""
    _refuse_missing(results)
    if any("visual_tokens" not in row for row in results["rows"]):
        raise UserError(
            "a row of the results does not say its visual_tokens; let the grid's command write it anew"
        )
    if not any(row["visual_tokens"] for row in results["rows"]):
        raise UserError("the results hold no finished cell yet; let the run finish one before reporting")


def _refuse_missing(results: Mapping[str, Any]) -> None:
    missing = [key for key in Results.__annotations__ if key not in results]
    if missing:
        raise UserError(f"the results have no {', '.join(missing)}; were they written by another version?")
