"""Questions in memory to greedy answers, one after the other as their batches are done."""

import contextlib
import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quecc_jax.config import DataConfig, RunConfig, SourceConfig
from quecc_jax.data.sources.open import open_sources
from quecc_jax.data.text.templates import PLACEHOLDER
from quecc_jax.errors import UserError
from quecc_jax.evaluate.predict import predict
from quecc_jax.generate.engine import SMALLEST
from quecc_jax.generate.reuse import Reuse, round_up

_FILE = "questions.json"


class Question(NamedTuple):
    """What is asked, about which pictures."""

    name: str
    """How messages call it."""
    text: str
    """Pictures come first, in order, unless it says where with as many `<image>`."""
    images: tuple[str | bytes, ...]
    """Paths, or encoded pictures."""


def ask(
    questions: Sequence[Question],
    config: RunConfig,
    params: dict[str, Any],
    *,
    max_new_tokens: int,
    batch_size: int,
    keep: Callable[[int, str], None],
    reuse: Reuse | None = None,
) -> None:
    """Answers questions in their order, asked as in training; more pictures than in training may be given.

    Args:
      questions: what is asked.
      config: the run's; its sources are not read.
      params: parameters by top-level name.
      max_new_tokens: longest answer.
      batch_size: questions answered at a time.
      keep: called with a question's place and its answer as soon as its batch is done.
      reuse: remembers and counts what repeats among these questions; not to be shared between calls.

    Raises:
      UserError: a picture cannot be read, or a question is too long; names the question.
    """
    if not questions:
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = as_source(questions, [""] * len(questions), config, Path(scratch))
        with naming(questions):
            data = dataclasses.replace(data, max_length=_longest(data, config), query_length=data.query_limit)
            predict(
                config.model,
                data,
                params,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                reuse=reuse,
                each=lambda answer: keep(answer.row["id"], answer.prediction),
            )


def _longest(data: DataConfig, config: RunConfig) -> int:
    """Places that the longest prompt needs, in a bucket: a run's max_length is many times a question's.

    A question for the compressor needs as many, which may be more where a template leaves the human's words
    out.
    """
    (source,) = open_sources(data, config.model, prompts=True)
    made = map(source.encoded, range(len(source)))
    longest = max(max(len(one.codes), len(one.queries)) for one in made)
    return min(data.max_length, max(SMALLEST, round_up(longest)))


def as_source(
    questions: Sequence[Question], answers: Sequence[str], config: RunConfig, scratch: Path
) -> DataConfig:
    """The run's data settings with questions and answers, written into `scratch`, as their one source.

    Nothing of a row is cut: one that is too long is an error.
    """
    pairs = enumerate(zip(questions, answers, strict=True))
    rows = [_row(number, question, answer, scratch) for number, (question, answer) in pairs]
    (scratch / _FILE).write_text(json.dumps(rows), encoding="utf-8")
    source = SourceConfig(kind="llava_json", path=str(scratch / _FILE), images=str(scratch))
    most = max(1, *(len(question.images) for question in questions))
    return dataclasses.replace(
        config.data,
        sources=(source,),
        cached_features=False,
        cached_queries=False,
        images_per_row=most,
        labels="answers",
        too_long="error",
    )


@contextlib.contextmanager
def naming(questions: Sequence[Question]) -> Iterator[None]:
    """Makes errors about rows of `as_source` name the question."""
    try:
        yield
    except UserError as error:
        row = re.fullmatch(rf".*/{re.escape(_FILE)}, row (\d+)(?: \(line \d+\))?: (.*)", str(error))
        if row is None:
            raise
        raise UserError(f"question {questions[int(row[1]) - 1].name}: {row[2]}") from None


def _row(number: int, question: Question, answer: str, scratch: Path) -> dict[str, Any]:
    """A question and its answer as a LLaVA-format row; pictures in memory become files."""
    names = []
    for image in question.images:
        if isinstance(image, bytes):
            # Named by what it holds, so that one picture under several questions is known again.
            names.append(hashlib.sha256(image).hexdigest())
            (scratch / names[-1]).write_bytes(image)
        else:
            names.append(str(Path(image).absolute()))
    text = question.text
    if text.count(PLACEHOLDER) != len(names):
        text = f"{PLACEHOLDER}\n" * len(names) + text.replace(PLACEHOLDER, "").strip()
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return {"id": number, "conversations": turns, **({"image": names} if names else {})}
