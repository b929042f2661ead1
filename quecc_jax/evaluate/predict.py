"""Answers of a model to the questions of a data set."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.config.shapes import at_visual_tokens
from quecc_jax.data.bad_rows import Tally
from quecc_jax.data.pipeline import eval_batches, rows_by_id
from quecc_jax.data.references import image_refs
from quecc_jax.data.text.conversation import PLACEHOLDER
from quecc_jax.data.text.templates import Stops, stops
from quecc_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from quecc_jax.errors import UserError
from quecc_jax.generate import build_generator
from quecc_jax.generate.decode import decoding_params
from quecc_jax.generate.reuse import Encoders, Reuse
from quecc_jax.generate.text_stream import answer_text


class Answer(NamedTuple):
    """One answered question."""

    row: dict[str, Any]
    """The LLaVA-format row that asks it."""
    prediction: str
    question_cut: bool = False
    """data.query_length cut the question that the compressor reads."""

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
    reuse: Reuse | None = None,
) -> list[Answer]:
    """Greedy answers to the first question of every row of `data.sources`, in order.

    Args:
      model: an elastic one answers with its largest V unless `shapes.at_visual_tokens` chose another.
      params: parameters by top-level name; `vision` may be missing when data.cached_features is set.
      progress: called with the number of answered rows after every batch.
      each: called with every answer as soon as its batch is done.
      reuse: remembers and counts what repeats over the rows; a new one if None. Its pictures are those
        of `data`, its features those of `params`.

    Raises:
      UserError: a source cannot be read, or a row has no answer to compare with or is too long.
    """
    model = at_visual_tokens(model)
    tokenizer = load_tokenizer(data.tokenizer)
    ends = stops(data.template, tokenizer)
    generate = build_generator(model, max_new_tokens, ends.ids[0], ends.ids[1:])
    encode, params = Encoders(model, Reuse() if reuse is None else reuse), decoding_params(params, model)
    rows, answers = rows_by_id(data), list[Answer]()
    for identity, row in rows.items():
        turns = row.get("conversations") if isinstance(row, dict) else None
        if isinstance(turns, list) and len(turns) < 2:
            where = f"{data.sources[identity >> 32].path}, row {(identity & 0xFFFFFFFF) + 1}"
            raise UserError(f"{where} has no answer to compare with; add one")
    places = data.row_images(model.visual_tokens, model.vision.places) if model.vision.tiles else 0
    tally = Tally(data, len(rows))
    for batch in eval_batches(data, model, batch_size, prompts=True, tally=tally):
        assert batch.ids is not None
        ids = batch.ids.tolist()
        keys = [picture_keys(i, rows[i], places) if i >= 0 else [] for i in ids]
        visual = encode(params, batch, keys)
        prompts = batch._replace(ids=None, pixels=None, features=None)
        tokens = jax.device_get(generate(params, prompts, visual)).tolist()
        for identity, own in zip(ids, tokens, strict=True):
            if identity >= 0:
                answer, cut_question = read_answer(own, tokenizer, ends), identity in tally.cut_questions
                answers.append(Answer(rows[identity], answer, cut_question))
                each(answers[-1])
        progress(len(answers))
    return answers


def picture_keys(identity: int, row: dict[str, Any], places: int = 0) -> list[Hashable]:
    """What tells the pictures of a row from others of the same sources; `Encoders` takes it. With tiles it
    tells apart all `places` of a row, which others with the same pictures share."""
    refs = image_refs(row)
    if places:
        return [(identity >> 32, str(refs), number) for number in range(places)]
    return [(identity >> 32, str(ref)) for ref in refs]


def read_answer(ids: list[int], tokenizer: Tokenizer, ends: Stops) -> str:
    """Text of generated ids up to the first end token, or to the text that ends an answer."""
    end = ids.index(ends.ids[0]) if ends.ids[0] in ids else len(ids)
    return answer_text(tokenizer, ids[:end], (ends.text,) if ends.text else ())
