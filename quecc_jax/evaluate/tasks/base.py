"""What a benchmark is to the evaluation: files, questions, a judge, metrics and answer files.

Directories follow LLaVA's `playground/data/eval`, so a folder that serves LLaVA serves here.
"""

import dataclasses
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from quecc_jax.data.files import read_json, write_json
from quecc_jax.errors import UserError
from quecc_jax.evaluate.bootstrap import Metrics, Tally, Totals, ratio
from quecc_jax.paths import write_text

T = TypeVar("T")
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
"""Response formats of LLaVA-1.5 (Liu et al. 2023, "Improved Baselines", table 7)."""
LLAVA = "github.com/haotian-liu/LLaVA at commit c121f04"
LMMS_EVAL = "lmms_eval 0.7.3"
"""Where official programs were read and run to compare with."""
EVAL_ZIP = "LLaVA's eval.zip, linked from docs/Evaluation.md of github.com/haotian-liu/LLaVA"


class File(NamedTuple):
    """A file or folder that a benchmark needs."""

    path: str
    """Below the data directory; a folder's ends with a slash."""
    source: str
    """Where the benchmark's makers offer it."""


class Sample(NamedTuple):
    """One question."""

    id: int | str
    """Unique within the benchmark."""
    images: tuple[str | bytes, ...]
    """Paths of images, or their encoded bytes."""
    prompt: str
    """What is asked, response format included, image placeholders not."""
    truth: Any
    """JSON value that the judge compares with; None where it is not public."""
    extra: dict[str, Any]
    """JSON values that judging, grouping or answer files need."""


class Judged(NamedTuple):
    """One answered question."""

    sample: Sample
    answer: str
    """What the model said."""
    parsed: str
    """What the benchmark's rule reads in it."""
    score: float | None
    """How right it is, 0..1; None where the truth is not public."""


Judge = Callable[[Sample, str], tuple[str, float | None]]
"""From a question and its answer to what is read in it and how right that is."""


class Scorer(NamedTuple):
    """A rule by which answers are read, and the official program whose rule it is."""

    name: str
    """What --scorer calls it."""
    program: str
    """The program: file, repository and commit."""
    judge: Judge
    nothing: str = ""
    """How a reading begins where the program finds none; an empty reading always means none."""

    def unread(self, parsed: str) -> bool:
        """Whether the program found nothing in the answer."""
        return not parsed or (bool(self.nothing) and parsed.startswith(self.nothing))


Write = Callable[[Path, Sequence[Judged], Path], None]
"""Writes into a folder the file that the benchmark's server or script takes; the last argument is the data
directory."""


def scored_mean(unit: Sequence[Judged]) -> Tally:
    """Scores and questions of a unit, in all and by the extras named in `sample.extra["kinds"]`."""
    tally: dict[str, float] = defaultdict(float)
    for one in unit:
        if one.score is None:
            continue
        for kind in ("", *("/" + kind for kind in one.sample.extra.get("kinds", ()))):
            tally[f"score{kind}"] += one.score
            tally[f"count{kind}"] += 1
    return tally


def percentages(totals: Totals) -> Totals:
    """Mean scores in %: `accuracy`, and `accuracy/KIND` for every kind."""
    return {
        name.replace("count", "accuracy", 1): 100 * ratio(totals[name.replace("count", "score", 1)], count)
        for name, count in totals.items()
        if name.startswith("count")
    }


def no_upload(folder: Path, judged: Sequence[Judged], data: Path) -> None:
    """For benchmarks whose scripts read LLaVA's answer file itself."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark."""

    name: str
    about: str
    """Name and size for people, as "X, 1,234 questions"."""
    files: tuple[File, ...]
    load: Callable[[Path], list[Sample]]
    """Questions from the data directory; raises UserError where a file is not of the form it should be."""
    scorers: tuple[Scorer, ...]
    """Rules for its answers: first the one that is used, then others that people use."""
    unit: Callable[[Sample], Hashable] = attrgetter("id")
    """What the sample is drawn together with; samples of one unit share this value."""
    tally: Callable[[Sequence[Judged]], Tally] = scored_mean
    metrics: Metrics = percentages
    headline: str = "accuracy"
    """The metric that papers report."""
    column: str = ""
    """Column of the paper's table 1 that shows it."""
    write: Write = no_upload
    submit: str = ""
    """Where answers are scored whose truth is not public."""
    max_new_tokens: int = 128
    """Longest answer: that of the program whose prompts it has."""
    note: str = ""
    """What to know before its numbers are held against published ones."""

    @property
    def questions(self) -> int | None:
        """How many questions it has, if `about` says that."""
        found = re.search(r"([\d,]+) (?:yes-or-no questions|questions|problems)", self.about)
        return int(found[1].replace(",", "")) if found else None

    @property
    def scorer(self) -> Scorer:
        """The rule that is used."""
        return self.scorers[0]

    @property
    def judge(self) -> Judge:
        """What the rule that is used says of a question and its answer."""
        return self.scorer.judge

    def scored_by(self, name: str) -> "Task":
        """The same benchmark with another of its rules.

        Raises:
          UserError: it has no rule of that name.
        """
        found = [scorer for scorer in self.scorers if scorer.name == name]
        if not found:
            raise UserError(
                f"--scorer {self.name}={name}: {self.name} has no scorer {name}; choose from "
                f"{', '.join(scorer.name for scorer in self.scorers)}"
            )
        return dataclasses.replace(self, scorers=(*found, *(s for s in self.scorers if s.name != name)))

    def units(self, judged: Iterable[Judged]) -> list[list[Judged]]:
        """The answers by unit, in order of first appearance."""
        return _grouped(judged, lambda one: self.unit(one.sample))


def _grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items by their keys, in order of first appearance."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def missing_files(tasks: Iterable[Task], data: Path) -> list[File]:
    """Files and folders of the tasks that are not in the data directory, each once."""
    wanted = dict.fromkeys(file for task in tasks for file in task.files)
    return [
        f
        for f in wanted
        if not ((data / f.path).is_dir() if f.path.endswith("/") else (data / f.path).is_file())
    ]


def limited(task: Task, samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """About `limit` questions, spread evenly over the benchmark, whole units only; all of them for None."""
    if limit is None or limit >= len(samples):
        return list(samples)
    groups = _grouped(samples, task.unit)
    wanted = max(1, round(limit * len(groups) / len(samples)))
    chosen = {i * len(groups) // wanted for i in range(wanted)}
    kept = {sample.id for i in chosen for sample in groups[i]}
    return [sample for sample in samples if sample.id in kept]


def asked(question: str, form: str = SHORT) -> str:
    """A question and its response format on a line of its own."""
    return f"{question}\n{form}"


def options(choices: Iterable[str], form: str = "{}. {}") -> str:
    """Choices as lines "A. first", or in another form."""
    return "\n".join(form.format(chr(ord("A") + i), choice) for i, choice in enumerate(choices))


def letters(count: int) -> list[str]:
    """The first letters of the alphabet."""
    return [chr(ord("A") + i) for i in range(count)]


class Record(dict[str, Any]):
    """Fields of one record of a data file; asking for one that it lacks raises a UserError."""

    def __init__(self, fields: object, where: str):
        super().__init__(fields if isinstance(fields, Mapping) else {})
        self.where = where
        """How messages begin."""

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.where} has no {name}; take the benchmark's own file")


def records(path: Path, values: Iterable[object] | None = None) -> Iterator[Record]:
    """The records of a data file in their order, counted from 1 in messages.

    Args:
      path: a .json or .jsonl file, a list of records.
      values: the records, where the file holds more than these.

    Raises:
      UserError: as `read_json`.
    """
    for number, value in enumerate(read_json(path) if values is None else values, start=1):
        yield Record(value, f"{path}, record {number}")


def upload(name: str, record: Callable[[Judged], object]) -> Write:
    """Writes the file `name`: a JSON list of one record an answer, or a value a line if it is a .jsonl file."""

    def write(folder: Path, judged: Sequence[Judged], data: Path) -> None:
        values = [record(one) for one in judged]
        (write_lines if name.endswith(".jsonl") else write_json)(folder / name, values)

    return write


def write_lines(path: Path, values: Iterable[object]) -> None:
    """Writes one JSON value a line, the file whole or not at all."""
    write_text(path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def llava_answers(judged: Iterable[Judged], model: str) -> list[dict[str, Any]]:
    """Records of an answer file as LLaVA's scripts write it (llava/eval/model_vqa*.py)."""
    found = []
    for one in judged:
        question = one.sample.extra.get("question_id", one.sample.id)
        unique = hashlib.sha256(f"{model}\0{one.sample.id}\0{one.answer}".encode()).hexdigest()[:22]
        found.append(
            {
                "question_id": question,
                "prompt": one.sample.extra.get("text", one.sample.prompt),
                "text": one.answer,
                "answer_id": unique,
                "model_id": model,
                **one.sample.extra.get("llava", {}),
                "metadata": {},
            }
        )
    return found
