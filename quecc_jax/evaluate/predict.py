"""Answers of a model to the questions of a data set, or to one question."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from quecc_jax.config import DataConfig, ModelConfig, RunConfig
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.conversation import PLACEHOLDER, prompt
from quecc_jax.data.images import load_pixels
from quecc_jax.data.pipeline import eval_batches, rows_by_id
from quecc_jax.data.templates import Stops, stops
from quecc_jax.data.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.generate import Generator, build_generator


class Answer(NamedTuple):
    """One answered question."""

    row: dict[str, Any]
    """The LLaVA-format row that asks it."""
    prediction: str

    @property
    def truth(self) -> str:
        """The row's own answer."""
        return self.row["conversations"][1]["value"]

    @property
    def question(self) -> str:
        """The question without placeholders."""
        return self.row["conversations"][0]["value"].replace(PLACEHOLDER, "").strip()


def predict(
    model: ModelConfig,
    data: DataConfig,
    params: dict[str, Any],
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    progress: Callable[[int], None] = lambda rows: None,
    each: Callable[[Answer], None] = lambda answer: None,
) -> list[Answer]:
    """Greedy answers to the first question of every row of `data.sources`, in order.

    Args:
      params: parameters by top-level name; `vision` may be missing when data.cached_features is set.
      progress: called with the number of answered rows after every batch.
      each: called with every answer as soon as its batch is done.

    Raises:
      UserError: a source cannot be read, or a row has no answer to compare with or is too long.
    """
    tokenizer = load_tokenizer(data.tokenizer)
    generate, ends = _generator(model, data, max_new_tokens, tokenizer)
    rows, answers = rows_by_id(data), list[Answer]()
    for identity, row in rows.items():
        turns = row.get("conversations") if isinstance(row, dict) else None
        if isinstance(turns, list) and len(turns) < 2:
            where = f"{data.sources[identity >> 32].path}, row {(identity & 0xFFFFFFFF) + 1}"
            raise UserError(f"{where} has no answer to compare with; add one")
    for batch in eval_batches(data, model, batch_size, prompts=True):
        assert batch.ids is not None
        tokens = jax.device_get(generate(params, batch._replace(ids=None)))
        for identity, ids in zip(batch.ids.tolist(), tokens.tolist(), strict=True):
            if identity >= 0:
                answers.append(Answer(rows[identity], read_answer(ids, tokenizer, ends)))
                each(answers[-1])
        progress(len(answers))
    return answers


def answer(
    config: RunConfig,
    params: dict[str, Any],
    question: str,
    images: Sequence[str | Path] = (),
    *,
    max_new_tokens: int,
) -> str:
    """The greedy answer to one question about some pictures, asked as in training.

    Raises:
      UserError: a picture cannot be read, there are more than a row of the run's data has room for,
        or the question does not fit.
    """
    tokenizer, model = load_tokenizer(config.data.tokenizer), config.model
    pixels = [load_pixels(image, model.vision, config.data.image_aspect) for image in images]
    if len(images) > config.data.images_per_row:
        raise UserError(f"{len(images)} pictures are given but the model was trained with at most "
                        f"{config.data.images_per_row} a question; give fewer")
    try:
        made = prompt(question, len(images), tokenizer, config.data, model.visual_tokens)
    except UserError as error:
        raise UserError(f"question {question!r}: {error}") from None
    length, query = len(made["tokens"]), made["query"]
    batch = Batch(
        tokens=made["tokens"][None],
        slots=made["slots"][None],
        labels=np.full((1, length), IGNORE, np.int32),
        positions=np.arange(length, dtype=np.int32)[None],
        segments=np.ones((1, length), np.int32),
        queries=np.tile(query, (1, len(images), 1)),
        query_lengths=np.full((1, len(images)), len(query), np.int32),
        pixels=np.stack(pixels)[None] if pixels else None,
    )
    generate, ends = _generator(model, config.data, max_new_tokens, tokenizer)
    return read_answer(jax.device_get(generate(params, batch))[0].tolist(), tokenizer, ends)


def _generator(
    model: ModelConfig, data: DataConfig, max_new_tokens: int, tokenizer: Tokenizer
) -> tuple[Generator, Stops]:
    ends = stops(data.template, tokenizer)
    return build_generator(model, max_new_tokens, ends.ids[0], ends.ids[1:]), ends


def read_answer(ids: list[int], tokenizer: Tokenizer, ends: Stops) -> str:
    """Text of generated ids up to the first end token, or to the text that ends an answer."""
    end = ids.index(ends.ids[0]) if ends.ids[0] in ids else len(ids)
    text = tokenizer.decode(ids[:end])
    return text.split(ends.text)[0].strip() if ends.text else text
