"""How likely a model finds given answers."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.config import RunConfig
from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.pipeline import eval_batches
from quecc_jax.data.text.templates import end_ids
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.evaluate.ask import Question, as_source, naming
from quecc_jax.models.vlm import VLM


def log_likelihoods(
    questions: Sequence[Question],
    answers: Sequence[str],
    config: RunConfig,
    params: dict[str, Any],
    *,
    batch_size: int,
) -> list[tuple[float, bool]]:
    """Log-probability of each answer's tokens after its question, and whether greedy decoding says them.

    The tokens that end an answer do not count.

    Args:
      questions: what is asked, as in training.
      answers: one for each question.
      config: the run's; its sources are not read.
      params: parameters by top-level name.
      batch_size: rows of one pass.

    Raises:
      UserError: a picture cannot be read, or question and answer together are too long.
    """
    if not questions:
        return []
    model: Any = VLM(config.model)
    ends = len(end_ids(config.data.template, load_tokenizer(config.data.tokenizer)))

    @jax.jit
    def score(params: Any, batch: Batch, places: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Over [B, L]: positions whose next tokens are wanted, -1 where there is none."""
        hidden = model.apply({"params": params}, batch)
        hidden = jnp.take_along_axis(hidden, jnp.maximum(places, 0)[..., None], axis=1)
        logits = model.apply({"params": params}, hidden, method=VLM.logits).astype(jnp.float32)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], axis=-1)[..., 0]
        real = places >= 0
        greedy = (logits.argmax(axis=-1) == wanted) | ~real
        return jnp.sum(jnp.where(real, chosen, 0.0), axis=1), jnp.all(greedy, axis=1)

    found: list[tuple[float, bool]] = []
    with tempfile.TemporaryDirectory() as scratch:
        data = as_source(questions, answers, config, Path(scratch))
        with naming(questions):
            for batch in eval_batches(data, config.model, batch_size):
                places, wanted = _wanted(np.asarray(batch.labels), ends)
                sums, greedy = jax.device_get(score(params, batch._replace(ids=None), places, wanted))
                found += list(zip(sums.tolist(), greedy.tolist(), strict=True))
    return found[: len(questions)]


def _wanted(labels: np.ndarray, ends: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, L] places before the labelled tokens, and these; the last `ends` of a row are left out."""
    rows = [np.flatnonzero(row != IGNORE) for row in labels]
    rows = [row[: len(row) - ends] for row in rows]
    width = 1 << max(0, max(map(len, rows)) - 1).bit_length()  # A power of two: few programs.
    places, wanted = np.full((len(rows), width), -1, np.int32), np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        places[number, : len(row)], wanted[number, : len(row)] = row - 1, labels[number, row]
    return places, wanted
