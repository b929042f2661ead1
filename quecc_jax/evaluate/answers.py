"""Greedy answers to the questions of a data set or a benchmark, a batch at a time."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from jax.sharding import Mesh

from quecc_jax.config import DataConfig, ModelConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.references import Row
from quecc_jax.data.sources.open import open_sources, read_rows
from quecc_jax.data.text.templates import PLACEHOLDER
from quecc_jax.distributed import Watchdog
from quecc_jax.errors import UserError
from quecc_jax.generate.decode import Params
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Prompt, Question
from quecc_jax.generate.reuse import Reuse
from quecc_jax.groups import Group, check_same, from_groups

T = TypeVar("T")
Asked = TypeVar("Asked", Question, Prompt)
MANY = 1024
"""Images of one question, at most; a batch has room for those that its questions have."""


class Answer(NamedTuple):
    """The answer to the first question of a row."""

    row: Mapping[str, Any]
    """In LLaVA's form, which its layout has checked."""
    prediction: str
    question_cut: bool = False
    """data.query_length cut the question that the compressor reads."""

    @property
    def truth(self) -> str:
        """The row's own answer."""
        return self.row["conversations"][1]["value"]

    @property
    def kind(self) -> str:
        """The row's kind of question, or "other"."""
        return str(self.row.get("kind") or "other")

    @property
    def question(self) -> str:
        """The question without placeholders."""
        return self.row["conversations"][0]["value"].replace(PLACEHOLDER, "").strip()


def answer_rows(
    config: RunConfig,
    params: Params,
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    progress: Callable[[int], None] = lambda answered: None,
    reuse: Reuse | None = None,
    group: Group | None = None,
) -> list[Answer]:
    """Answers to the first question of every row of `config.data.sources`, in order; of several processes each gets
    all of them.

    Args:
      config: an elastic model answers with its largest V unless `shapes.at_visual_tokens` chose another.
      params: by top-level name, on the group's mesh; `vision` may be missing where data.cached_features is set.
      max_new_tokens: longest answer.
      batch_size: rows answered at a time.
      progress: called with the number of answered rows after every batch, in as many steps where several groups
        answer.
      reuse: remembers and counts what repeats, over all groups; it belongs to these parameters.
      group: that answers its share of the rows.

    Raises:
      UserError: a source cannot be read, or a row is bad, too long or has no answer to compare with; or another
        process has other rows.
    """
    group = group or Group()
    rows = list(source_rows(config.data))
    for where, row in rows:
        turns = row.get("conversations") if isinstance(row, dict) else None
        if isinstance(turns, list) and len(turns) < 2:
            raise UserError(f"{where} has no answer to compare with; add one")
    check_same(
        "rows or settings", lambda: [repr(config), max_new_tokens, batch_size, [row for _, row in rows]]
    )
    engine, own = Engine(config, params, reuse=reuse, mesh=group.mesh), list[tuple[str, bool]]()
    mine = len(group.share(rows))
    for prompts, texts in _answered(
        engine, row_prompts(config.model, config.data, group), max_new_tokens, batch_size
    ):
        cut = (prompt.encoded.query_cut > 0 for prompt in prompts)
        own += zip(texts, cut, strict=True)
        progress(len(rows) * len(own) // mine)
    answers = [answer for told in gather(own, engine.reuse, group) for answer in told]
    return [Answer(row, *answer) for (_, row), answer in zip(rows, answers, strict=True)]


def gather(own: T, reuse: Reuse, group: Group) -> list[T]:
    """What the groups answered, in their order; `reuse` counts what was reused in all of them from now on.

    Args:
      own: what JSON can hold.
    """
    told = from_groups((own, reuse.counts()), group)
    reuse.total([counts for _, counts in told])
    return [answers for answers, _ in told]


def _answered(
    engine: Engine, asked: Iterable[Asked], max_new_tokens: int, batch_size: int
) -> Iterator[tuple[list[Asked], list[str]]]:
    """Batches of what is asked, with their answers."""
    with Watchdog(done="batch") as watchdog:
        for number, batch in enumerate(batched(asked, batch_size), 1):
            yield batch, engine.run(batch, Limits(max_new_tokens), batch_size).finish()
            watchdog.progress(number)


def answer_questions(
    engine: Engine,
    questions: Iterable[Question],
    *,
    max_new_tokens: int,
    batch_size: int,
    keep: Callable[[int, str], None],
) -> None:
    """Answers questions in their order, asked as in training.

    Args:
      engine: see `question_engine`.
      questions: made when their batch is. Their images come first, in order, unless a text says where with
        as many `<image>`.
      max_new_tokens: longest answer.
      batch_size: questions answered at a time.
      keep: called with a question's number and its answer as soon as its batch is done.

    Raises:
      UserError: an image cannot be read, or a question does not fit; names the question.
    """
    number = 0
    for _, texts in _answered(engine, map(placed, questions), max_new_tokens, batch_size):
        for text in texts:
            keep(number, text)
            number += 1


def question_engine(
    config: RunConfig, params: Params, reuse: Reuse | None = None, mesh: Mesh | None = None
) -> Engine:
    """An engine that takes more images a question than the run was trained with."""
    most = MANY if config.data.images_per_row else 0
    data = dataclasses.replace(config.data, images_per_row=most)
    return Engine(dataclasses.replace(config, data=data), params, reuse=reuse, mesh=mesh)


def placed(question: Question) -> Question:
    """The question with its images in front, unless its text has a placeholder for each."""
    text, images = question.text, len(question.images)
    if text.count(PLACEHOLDER) == images:
        return question
    bare = text.replace(PLACEHOLDER, "").strip()
    return question._replace(text=f"{PLACEHOLDER}\n" * images + bare)


def row_prompts(model: ModelConfig, data: DataConfig, group: Group | None = None) -> Iterator[Prompt]:
    """The first question of every row of `data.sources` that a group answers, in order, with pixels or stored tower
    states.

    Raises:
      UserError: a source cannot be read, or a row is bad or too long.
    """
    data = dataclasses.replace(data, batching="pad", bad_rows="error", cached_queries=False)
    sources = open_sources(data, at_visual_tokens(model), prompts=True)
    rows = [(source, row) for source in sources for row in range(len(source))]
    for source, row in (group or Group()).share(rows):
        yield Prompt(source.encoded(row), functools.partial(source.write_images, row), data.cached_features)


def source_rows(data: DataConfig) -> Iterator[tuple[str, Row]]:
    """Every row of the sources, behind how messages call it."""
    for source in data.sources:
        for number, row in enumerate(read_rows(source), 1):
            yield f"{source.path}, row {number}", row


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last of what is left."""
    items = iter(items)
    while batch := [item for _, item in zip(range(size), items, strict=False)]:
        yield batch
