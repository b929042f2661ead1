"""Answers of a model to the questions of a data set."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.data.pipeline import eval_batches, rows_by_id
from quecc_jax.data.tokenizer import load_tokenizer
from quecc_jax.generate import build_generator


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
        return self.row["conversations"][0]["value"].replace("<image>", "").strip()


def predict(
    model: ModelConfig,
    data: DataConfig,
    params: dict[str, Any],
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    progress: Callable[[int], None] = lambda rows: None,
) -> list[Answer]:
    """Greedy answers to the first question of every row of `data.sources`, in order.

    Args:
      params: parameters by top-level name; `vision` may be missing when data.cached_features is set.
      progress: called with the number of answered rows after every batch.
    """
    tokenizer = load_tokenizer(data.tokenizer)
    generate = build_generator(model, max_new_tokens, tokenizer.eos_token_id)
    rows, answers = rows_by_id(data), list[Answer]()
    for batch in eval_batches(data, model, batch_size, prompts=True):
        assert batch.ids is not None
        tokens = jax.device_get(generate(params, batch._replace(ids=None)))
        for identity, ids in zip(batch.ids.tolist(), tokens.tolist(), strict=True):
            if identity >= 0:
                ended = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
                answers.append(Answer(rows[identity], tokenizer.decode(ended).strip()))
        progress(len(answers))
    return answers
