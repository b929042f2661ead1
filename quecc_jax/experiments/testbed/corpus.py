"""Text made from training pools: documents for a language model, and questions without images.

Nobody's decoder starts at random, so a small one is first trained as a plain language model on
documents like "row 1, column 3: red circle. row 2, column 2: teal triangle. what color is the
shape in row 2, column 2? teal ...": statements about an image, some of its questions, the answers.
Everything comes from the training split.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from quecc_jax.data.files import fresh_directory
from quecc_jax.data.sources.easy_vqa import COLORS, SHAPES
from quecc_jax.data.sources.pool import Pool, read_pool, write_rows
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.cells import UNKNOWN, named

TOLD = 0.75
"""Share of documents that begin with statements, where the image tells any."""
QUESTIONS = 3
"""Questions about one image that a document holds at most."""
COMPASS = {
    2: (("northwest", "northeast"), ("southwest", "southeast")),
    3: (("northwest", "north", "northeast"), ("west", "center", "east"), ("southwest", "south", "southeast")),
}
LINES = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}


def write_corpus(
    pools: Sequence[Pool], directory: str | Path, limit: int, end: str, joined: int = 2, seed: int = 0
) -> Pool:
    """Writes documents as a pool of text-only rows for the template `plain`, several to a row.

    Half of the documents read like the chat template `short`, half are bare; most of those whose
    image's content is known begin with statements that hold the answers.

    Args:
      pools: pools of training splits.
      limit: documents to keep, at random; 0 keeps all.
      joined: documents of one row, end to end; the last may be cut off by a run's max_length.
      end: text of the tokenizer's end token.

    Raises:
      UserError: one of the pools is a test split.
    """
    rng = np.random.default_rng(seed)
    documents = [text for pool in pools for text in _documents(pool, end, rng)]
    order = rng.permutation(len(documents))[: limit or None]
    groups = [order[i : i + joined].tolist() for i in range(0, len(order), joined)]
    rows = [
        _text_row(f"documents-{n}", "text/documents", "", "".join(documents[i] for i in group))
        for n, group in enumerate(groups)
    ]
    return _write(rows, directory, "train")


class _Asked(NamedTuple):
    """A turn of a row, as text about it has it."""

    question: str
    answer: str
    topic: str
    places: list[list[int]] | None
    """Cells that tell the answer, where the row says so."""


def write_questions(pool: Pool, directory: str | Path) -> Pool:
    """Writes a pool's questions and answers without their images, kinds and ids kept.

    Trained on, they show what can be answered without looking.
    """
    rows = [_text_row(row["id"], row["kind"], *_turns(row)) for row in pool.rows]
    return _write(rows, directory, pool.meta["split"])


def _documents(pool: Pool, end: str, rng: np.random.Generator) -> Iterator[str]:
    if pool.meta["split"] != "train":
        raise UserError(f"{pool.directory} is a test split; take training text from a training pool")
    about: dict[int, list[_Asked]] = {}
    for row in pool.rows:
        about.setdefault(row["image"], []).extend(_asked(row, len(pool.cells[row["image"]])))
    for image, every in about.items():
        for start in range(0, len(every), QUESTIONS):
            chosen = every[start : start + QUESTIONS]
            told = _told(pool, image, chosen, rng) if rng.random() < TOLD else ""
            told = f"{told} " if told else ""
            if rng.random() < 0.5:
                turns = (f"{one.question} ASSISTANT: {one.answer}{end}" for one in chosen)
                yield f"USER: {told}" + "USER: ".join(turns)
            else:
                yield told + " ".join(f"{one.question} {one.topic}: {one.answer}" for one in chosen) + end


def asked_cell(question: str) -> tuple[int, int] | None:
    """Row and column, from 0, of the cell that a question names, if it names one; of several the last."""
    found = re.findall(r"row (\d+), column (\d+)", question)
    return (int(found[-1][0]) - 1, int(found[-1][1]) - 1) if found else None


def topic(question: str, m: int) -> str:
    """One word for what a question is about: the cell, the row, the colour or the shape it names.

    A row of a grid of m x m cells is "top", "middle" or "bottom" and a cell "northwest", "center"
    and so on; grids of other sizes than 2 and 3 have cells that are called "cell", rows "row".
    """
    if cell := asked_cell(question):
        return COMPASS[m][cell[0]][cell[1]] if m in COMPASS else "cell"
    if found := re.search(r"in row (\d+)", question):
        return LINES[m][int(found[1]) - 1] if m in LINES else "row"
    words = (word for word in (*COLORS, *SHAPES) if re.search(rf"\b{word}s?\b", question))
    return next(words, "picture")


def statements(pool: Pool, image: int, questions: Sequence[str], rng: np.random.Generator) -> str:
    """Sentences that tell the answers to questions about an image, among others, in random order.

    Questions about cells get those cells and another, those about rows of digits those rows and
    another, those about a single shape its name; counts over the whole get nothing. Empty where
    the image does not tell.
    """
    cells = np.asarray(pool.cells[image])
    m = len(cells)
    if m == 1:
        return "" if UNKNOWN in cells else f"a {named(cells[0, 0])}."
    asked, rows = set[tuple[int, int]](), set[int]()
    for question in questions:
        if cell := asked_cell(question):
            asked.add(cell)
        elif found := re.search(r"in row (\d+)", question):
            rows.add(int(found[1]) - 1)
    if asked:
        asked.add((int(rng.integers(m)), int(rng.integers(m))))
    if rows:
        rows.add(int(rng.integers(m)))
    return _sentences(pool, image, asked, rows, rng)


def _told(pool: Pool, image: int, asked: Sequence[_Asked], rng: np.random.Generator) -> str:
    """`statements`, of the cells that rows name as those that tell the answers; whole rows as such."""
    known = [one.places for one in asked if one.places is not None]
    if len(known) < len(asked):
        return statements(pool, image, [one.question for one in asked], rng)
    m, cells, rows = len(pool.cells[image]), set[tuple[int, int]](), set[int]()
    for places in known:
        if len(places) == m > 1 and len({row for row, _ in places}) == 1:
            rows.add(places[0][0])
        else:
            cells |= {(row, column) for row, column in places}
    cells.add((int(rng.integers(m)), int(rng.integers(m))))
    return _sentences(pool, image, cells, rows, rng)


def _sentences(
    pool: Pool, image: int, cells: Iterable[tuple[int, int]], rows: Iterable[int], rng: np.random.Generator
) -> str:
    """What cells and rows of an image show, in random order."""
    labels, names = np.asarray(pool.cells[image]), pool.meta.get("names", ())
    told = [f"row {r + 1}, column {c + 1}: {named(labels[r, c], names)}." for r, c in sorted(cells)]
    told += [f"row {r + 1}: {' '.join(named(cell, names) for cell in labels[r])}." for r in sorted(rows)]
    return " ".join(told[i] for i in rng.permutation(len(told)))


def _turns(row: dict[str, Any]) -> list[str]:
    """What human and assistant say in turn, without placeholders."""
    return [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]


def _asked(row: dict[str, Any], m: int) -> list[_Asked]:
    """The turns of a row about an image of m x m cells."""
    said = _turns(row)
    turns = list(zip(said[::2], said[1::2], strict=True))
    topics = row.get("topics") or [topic(question, m) for question, _ in turns]
    places = row.get("places") or [None] * len(turns)
    return [_Asked(*turn, *about) for turn, *about in zip(turns, topics, places, strict=True)]


def _text_row(identity: str, kind: str, *said: str) -> dict[str, Any]:
    turns = [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(said)]
    return {"id": identity, "kind": kind, "conversations": turns}


def _write(rows: Sequence[dict[str, Any]], directory: str | Path, split: str) -> Pool:
    meta = {"task": "text", "split": split, "pictures": 0, "rows": len(rows)}
    with fresh_directory(directory) as aside:
        write_rows(rows, meta, aside)
    return read_pool(directory)
