"""Reads the rows of a run's first batches back from the arrays that the model gets."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from quecc_jax.config import RunConfig
from quecc_jax.data.bad_rows import Tally
from quecc_jax.data.batch import IGNORE, NEWLINE, Batch
from quecc_jax.data.collate import Collate
from quecc_jax.data.elastic import Elastic, choices
from quecc_jax.data.pipeline import plan_batches
from quecc_jax.data.plans.counts import counted
from quecc_jax.data.plans.packing import BatchPlan, Grouped, Packed
from quecc_jax.data.sampler import source_and_row
from quecc_jax.data.sources.open import open_sources
from quecc_jax.data.sources.source import Source
from quecc_jax.data.text.queries import question_ids
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer


class Span(NamedTuple):
    """Neighbouring tokens of one kind."""

    kind: Literal["prompt", "answer", "image"]
    """Without loss, with loss, or the slots of one image."""
    text: str
    tokens: int


class View(NamedTuple):
    """One image of a conversation."""

    pixels: np.ndarray | None
    """uint8 [height, width, 3] as the tower sees it; None where features are read instead."""
    query: str
    tokens: int
    """Of the query, BOS included."""


class Conversation(NamedTuple):
    """One conversation of a row."""

    where: str
    spans: list[Span]
    tokens: int
    learned: int
    """Tokens that carry loss."""
    views: list[View]


class Row(NamedTuple):
    """One row of a batch."""

    batch: int
    number: int
    length: int
    """Tokens S, padding included."""
    images: int
    """Image slots I."""
    talks: list[Conversation]
    left_out: list[str]
    """What is wrong with conversations that are not here."""


class Seen(NamedTuple):
    """The first rows of a run's data, and facts about its stream."""

    config: RunConfig
    rows: list[Row]
    facts: list[tuple[str, str]]


def look(config: RunConfig, count: int) -> Seen:
    """The first rows of the stream that training with this config reads, on one device where it counts conversations.

    Raises:
      UserError: as the data pipeline; with data.bad_rows `skip`, bad rows are shown for what they are.
    """
    config = counted(config, 1, lambda _: None)
    data, model, size = config.data, config.model, config.train.batch_size
    sources = open_sources(data, model)
    plans, _ = plan_batches(sources, data, model, size, config.train.seed)
    collate, tokenizer = Collate(sources, data, model), load_tokenizer(data.tokenizer, data.query_tokenizer)
    tally, rows = Tally(dataclasses.replace(data, max_bad_share=1.0), sum(map(len, sources))), list[Row]()
    number = 0
    while len(rows) < count:
        plan = plans[number]
        # Hardly more images are read than shown.
        wanted = -(-(count - len(rows)) // plan.pooled) * plan.pooled
        plan = plan._replace(ids=plan.ids[:wanted])
        batch, read = collate(plan)
        tally.add(read)
        why = {one.id: one.message for one in read.left_out}
        rows += [
            _row(batch, index, number, plan, why, sources, tokenizer, model.num_output_tokens)
            for index in range(min(len(plan.ids), count - len(rows)))
        ]
        number += 1
    return Seen(config, rows, _facts(config, sources, plans))


def _row(
    batch: Batch,
    index: int,
    number: int,
    plan: BatchPlan,
    why: dict[int, str],
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    num_output_tokens: int,
) -> Row:
    talks, pool = list[Conversation](), index // plan.pooled

    def conversations(index: int) -> list[tuple[int, int]]:
        """Source and row of each that a row of the batch holds."""
        ids = np.atleast_1d(plan.ids[index]).tolist()
        return [source_and_row(one) for one in ids if one >= 0 and one not in why]

    before = [one for other in range(pool * plan.pooled, index) for one in conversations(other)]
    image = sum(sources[source].encoded(row).crops for source, row in before)
    for segment, (source, row) in enumerate(conversations(index), start=1):
        here = batch.segments[index] == segment
        slots, labels = batch.slots[index][here], batch.labels[index][here]
        images = sources[source].encoded(row).crops
        views = [_view(batch, pool, image + k, tokenizer) for k in range(images)]
        spans = _spans(batch.tokens[index][here], slots, labels, tokenizer, num_output_tokens)
        talks.append(
            Conversation(
                sources[source].where(row), spans, int(here.sum()), int((labels != IGNORE).sum()), views
            )
        )
        image += images
    left_out = [why[one] for one in np.atleast_1d(plan.ids[index]).tolist() if one in why]
    return Row(number, index, plan.length, plan.images, talks, left_out)


def _view(batch: Batch, index: int, image: int, tokenizer: Tokenizer) -> View:
    asked = question_ids(batch.queries[index], batch.query_segments[index], batch.query_ends[index, image])
    pixels = None if batch.pixels is None else batch.pixels[index, image]
    reader = tokenizer.questions or tokenizer
    return View(pixels, reader.decode(asked), len(asked))


def _spans(
    tokens: np.ndarray, slots: np.ndarray, labels: np.ndarray, tokenizer: Tokenizer, num_output_tokens: int
) -> list[Span]:
    """Runs of tokens alike in loss and image, in order."""
    kinds = np.where(slots >= 0, 2 + slots // num_output_tokens, (labels != IGNORE).astype(int))
    if (slots == NEWLINE).any():
        # The map of an any-resolution image runs through its tiles row by row.
        kinds = np.where(slots >= 0, 2, kinds)
    spans, start = list[Span](), 0
    for stop in [*(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]:
        count = stop - start
        if kinds[start] > 1:
            spans.append(Span("image", f"{count} visual token{'s' * (count > 1)}", count))
        else:
            text = tokenizer.decode(tokens[start:stop], skip_special_tokens=False)
            spans.append(Span("answer" if kinds[start] else "prompt", text, count))
        start = stop
    return spans


def _visual_tokens(config: RunConfig) -> str:
    return " or ".join(map(str, choices(config.data, config.model) or (config.model.visual_tokens,)))


def _facts(config: RunConfig, sources: Sequence[Source], plans: Sequence[BatchPlan]) -> list[tuple[str, str]]:
    """What can be said of the whole stream, as pairs of name and value."""
    data, size = config.data, config.train.batch_size
    rows = sum(map(len, sources))
    facts = [
        ("rows", f"{rows:,}"),
        ("batching", data.batching),
        ("template", data.template),
        ("visual tokens of an image", _visual_tokens(config)),
    ]
    if data.batching == "pad":
        return [*facts, ("steps of an epoch", f"{rows / size:,.1f} of {size} rows")]
    plans = plans.plans if isinstance(plans, Elastic) else plans
    assert isinstance(plans, Grouped | Packed)
    of_rows = plans.of_rows
    tokens, images = int(of_rows.tokens.sum()), int(of_rows.image_counts.sum())
    facts.append(("tokens of a row", f"{tokens / rows:,.0f} on average, {of_rows.tokens.max():,} at most"))
    if isinstance(plans, Grouped):
        positions = sum(size * plans[k].length for k in range(plans.batches))
        steps = f"{plans.batches:,} of {size} rows"
    else:
        packed = plans.epoch()
        positions, steps = packed * plans.length, f"{packed / size:,.1f} of {size} packed rows"
        if plans.images:
            share = images / (packed // plans.pooled * plans.images)
            where = f"a pool of {plans.pooled} packed rows" if plans.pooled > 1 else "a packed row"
            facts.append(("image slots in use", f"{share:.1%} of {plans.images} {where}"))
    missing = int((of_rows.tokens == 0).sum())
    return [
        *facts,
        ("steps of an epoch", steps),
        ("positions that hold tokens", f"{tokens / positions:.1%}"),
        ("rows left out for their text", f"{missing:,}"),
    ]
