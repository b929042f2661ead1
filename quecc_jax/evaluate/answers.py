"""Greedy answers to the questions of a data set or a benchmark, a batch at a time."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from jax.sharding import Mesh

from quecc_jax.config import DataConfig, ModelConfig, RunConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.references import Row
from quecc_jax.data.sources.open import open_sources, read_rows
from quecc_jax.data.text.templates import PLACEHOLDER
from quecc_jax.data.text.turns import read_row
from quecc_jax.distributed import Watchdog
from quecc_jax.errors import BadRow, UserError
from quecc_jax.generate.decode import Params
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Limits, Prompt, Query, Question
from quecc_jax.generate.reuse import Reuse
from quecc_jax.groups import Group, check_same, from_groups

T = TypeVar("T")
Asked = TypeVar("Asked", Question, Prompt)
Turns = Literal["first", "all"]
"""Which questions of a row's conversation are asked."""
MANY = 1024
"""Images of one question, at most; a batch has room for those that its questions have."""


class Answer(NamedTuple):
    """The answer to one question of a row."""

    row: Mapping[str, Any]
    """In LLaVA's form, which its layout has checked."""
    prediction: str
    question_cut: bool = False
    """data.query_length cut the question that the compressor reads."""
    turn: int = 1
    """Which of the row's questions."""

    @property
    def truth(self) -> str:
        """The row's own answer."""
        return read_row(self.row).turns[2 * self.turn - 1]

    @property
    def kind(self) -> str:
        """The row's kind of question, or "other"."""
        return str(self.row.get("kind") or "other")

    @property
    def question(self) -> str:
        """The question without placeholders."""
        return read_row(self.row).turns[2 * self.turn - 2].replace(PLACEHOLDER, "").strip()


def answer_rows(
    config: RunConfig,
    params: Params,
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    progress: Callable[[int, int], None] = lambda answered, asked: None,
    reuse: Reuse | None = None,
    group: Group | None = None,
    turns: Turns = "first",
    query: Query = "own",
) -> list[Answer]:
    """Answers to the questions of every row of `config.data.sources`, in order; of several processes each gets all of
    them.

    Args:
      config: an elastic model answers with its largest V unless `shapes.at_visual_tokens` chose another.
      params: by top-level name, on the group's mesh; `vision` may be missing where data.cached_features is set.
      max_new_tokens: longest answer.
      batch_size: rows answered at a time.
      progress: called with the numbers of answered questions and of all after every batch, in as many steps where
        several groups answer.
      reuse: remembers and counts what repeats, over all groups; it belongs to these parameters.
      group: that answers its share of the questions.
      turns: the first question of a row, or all; before a later one stand the row's own answers to those before.
      query: whose words condition the compressor in later turns.

    Raises:
      UserError: a source cannot be read, or a row is bad, too long or has no answer to compare with; or another
        process has other rows.
    """
    group = group or Group()
    asked = [
        (row, turn)
        for where, row in source_rows(config.data)
        for turn in range(1, 1 + _answers_of(where, row, turns))
    ]
    check_same("rows or settings", lambda: [repr(config), max_new_tokens, batch_size, query, asked])
    engine, own = Engine(config, params, reuse=reuse, mesh=group.mesh), list[tuple[str, bool]]()
    mine = len(group.share(asked))
    for prompts, texts in _answered(
        engine, row_prompts(config.model, config.data, group, turns, query), max_new_tokens, batch_size
    ):
        cut = (prompt.encoded.query_cut > 0 for prompt in prompts)
        own += zip(texts, cut, strict=True)
        progress(len(asked) * len(own) // mine, len(asked))
    answers = [answer for told in gather(own, engine.reuse, group) for answer in told]
    return [Answer(row, *answer, turn) for (row, turn), answer in zip(asked, answers, strict=True)]


def _answers_of(where: str, row: Row, turns: Turns) -> int:
    """How many questions of a row are asked.

    Raises:
      UserError: one of them has no answer to compare with.
    """
    try:
        said = len(read_row(row).turns)
    except BadRow:
        return 1  # Laying it out says what is wrong, and where it stands.
    if said < 2 or (turns == "all" and said % 2):
        raise UserError(f"{where} has no answer to compare with; add one")
    return said // 2 if turns == "all" else 1


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


def row_prompts(
    model: ModelConfig,
    data: DataConfig,
    group: Group | None = None,
    turns: Turns = "first",
    query: Query = "own",
) -> Iterator[Prompt]:
    """The questions of every row of `data.sources` that a group answers, in order, with pixels or stored tower states.

    Raises:
      UserError: a source cannot be read, or a row is bad or too long.
    """
    data = dataclasses.replace(data, batching="pad", bad_rows="error", cached_queries=False)
    counts = [_answers_of(where, row, turns) for where, row in source_rows(data)] if turns == "all" else []
    # One set of sources for each turn: how a row is laid out belongs to its source.
    opened = [
        open_sources(data, at_visual_tokens(model), asked=turn, latest=query == "latest")
        for turn in range(max(counts, default=1))
    ]
    numbered = [(number, row) for number, source in enumerate(opened[0]) for row in range(len(source))]
    asked = [
        (opened[turn][number], row)
        for (number, row), count in zip(numbered, counts or [1] * len(numbered), strict=True)
        for turn in range(count)
    ]
    for source, row in (group or Group()).share(asked):
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
