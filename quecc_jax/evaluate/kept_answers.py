"""Answers that a folder keeps of a benchmark: settings.json and answers.jsonl, written, read and checked.

Where several groups of processes answer, each has an answers-NUMBER.jsonl of its own until all have ended.

A line's checksum covers the settings that it was answered under, too, so that one of another run or benchmark is seen.
What is damaged is asked again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from quecc_jax.distributed import notice
from quecc_jax.errors import UserError
from quecc_jax.evaluate.tasks.base import Sample
from quecc_jax.paths import write_text
from quecc_jax.records import Damaged, json_value, of_form, read_record, sealed, write_record

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"

Settings = Mapping[str, str | int]
"""What must be equal for answers to be of one run."""

_COVERED = (
    "task",
    "model",
    "visual_tokens",
    "max_new_tokens",
    "template",
    "dtype",
    "image_aspect",
    "image_decoding",
    "query",
    "query_length",
)
"""Settings that a line's checksum covers; another one here, and all answers kept so far would be asked again."""


class Answer(TypedDict):
    """A line of answers.jsonl."""

    id: int | str
    images: NotRequired[list[str]]
    """Paths, or hashes of those that stand in the data file."""
    kinds: NotRequired[list[str]]
    question: str
    prompt: NotRequired[str]
    answer: str
    parsed: NotRequired[Any]
    truth: NotRequired[Any]
    score: NotRequired[Any]


def check_settings(folder: Path, settings: Settings) -> None:
    """Compares the settings with those of the folder's answers, or writes them where there are none.

    Raises:
      UserError: they differ, or the folder's are damaged or lost.
    """
    path, advice = folder / SETTINGS, "choose another --out or remove that folder"
    try:
        found = _read_settings(folder, advice)
    except FileNotFoundError:
        if (folder / ANSWERS).exists() or _parts(folder):
            raise Damaged(f"{path} is lost, which says what {ANSWERS} beside it is of; {advice}") from None
        write_record(path, settings)
        return
    differ = [
        f"{name} {found.get(name)} -> {value}" for name, value in settings.items() if found.get(name) != value
    ]
    if differ:
        raise UserError(
            f"{folder} holds answers under other settings ({', '.join(differ)}); choose another "
            "--out or remove that folder"
        )


def _read_settings(folder: Path, advice: str) -> Settings:
    told = read_record(folder / SETTINGS, dict[str, str | int], advice)
    return {"image_decoding": "upright", **told}  # What was read before there was a choice.


def line_of(answer: Answer, settings: Settings) -> str:
    """An answer as a line of answers.jsonl."""
    return json.dumps(sealed(answer, of=_of(settings)), ensure_ascii=False)


def read_answers(folder: Path, samples: Sequence[Sample], settings: Settings) -> list[Answer]:
    """Answers of all files, each question once, in the order of the questions and then those to others; what is
    damaged is left out and said.

    A last line that was cut short is left out.

    Raises:
      UserError: a line answers another question than the samples ask.
    """
    prompts = {sample.id: sample.prompt for sample in samples}
    answers: dict[int | str, Answer] = {}
    for path in (folder / ANSWERS, *_parts(folder)):
        if path.is_file():
            answers |= {answer["id"]: answer for answer in _read(path, prompts, settings)}
    return [answers.pop(id) for id in prompts if id in answers] + list(answers.values())


def finished_answers(folder: Path, questions: int) -> tuple[Settings, list[Answer]]:
    """Settings and answers of an evaluation that came to its end, in the order of the questions.

    Args:
      folder: of one benchmark.
      questions: as many as its results.json names; those behind them were asked by another --limit.

    Raises:
      UserError: some are missing, damaged, or another run's.
    """
    advice = "evaluate again with the same --out, which asks what is missing"
    try:
        settings = _read_settings(folder, advice)
        lines = (folder / ANSWERS).read_bytes().split(b"\n")[:-1]
    except OSError:
        raise UserError(f"{folder} lacks {SETTINGS} or {ANSWERS}; {advice}") from None
    if _parts(folder) or len(lines) < questions:
        raise UserError(f"{folder} does not hold all answers of {questions} questions; {advice}")
    found = []
    for number, line in enumerate(lines[:questions], 1):
        name = f"{folder / ANSWERS}, line {number}"
        found.append(of_form(json_value(line, name, advice), Answer, name, advice, of=_of(settings)))
    return settings, found


def write_answers(folder: Path, answers: Iterable[Answer], settings: Settings) -> None:
    """Writes answers.jsonl anew, in the place of all files."""
    write_text(folder / ANSWERS, "".join(line_of(answer, settings) + "\n" for answer in answers))
    for path in _parts(folder):
        path.unlink()


def part_name(number: int | str) -> str:
    """The file of one of several groups."""
    return f"answers-{number}.jsonl"


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(part_name("*")))


def _read(path: Path, prompts: Mapping[int | str, str], settings: Settings) -> Iterator[Answer]:
    """The answers of one file."""
    damaged = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        name, advice = f"{path}, line {number}", "it is asked again"
        try:
            answer = of_form(json_value(line, name, advice), Answer, name, advice, of=_of(settings))
        except Damaged:
            damaged.append(str(number))
            continue
        if prompts.get(answer["id"], answer["question"]) != answer["question"]:
            raise UserError(
                f"{name} answers another question than the data files now ask as {answer['id']}; "
                "choose another --out"
            )
        yield answer
    if damaged:
        notice(
            f"WARNING: {path}: lines {', '.join(damaged[:10])} are damaged or another run's, and asked again"
        )


def _of(settings: Settings) -> str:
    return json.dumps([settings[name] for name in _COVERED])
