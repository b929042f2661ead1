"""How likely a model finds given answers."""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from quecc_jax.data.batch import IGNORE, Batch
from quecc_jax.data.text.templates import end_ids
from quecc_jax.evaluate.answers import batched, placed
from quecc_jax.generate.decode import Params, on_mesh
from quecc_jax.generate.engine import Engine
from quecc_jax.generate.questions import Question
from quecc_jax.generate.reuse import round_up
from quecc_jax.models.vlm import VLM, Visual
from quecc_jax.sharding import on_host, spread_rows


def log_likelihoods(
    engine: Engine, pairs: Iterable[tuple[Question, str]], *, batch_size: int
) -> list[tuple[float, bool]]:
    """Log-probability of each answer's tokens after its question, and whether greedy decoding says them.

    The tokens that end an answer do not count.

    Args:
      engine: see `answers.question_engine`.
      pairs: what is asked, as in training, and an answer to it; made when their batch is.
      batch_size: rows of one pass.

    Raises:
      UserError: an image cannot be read, or question and answer together are too long; names the question.
    """
    score = functools.partial(on_mesh(_score, engine.mesh), VLM(engine.config.model, unrolled=True))
    ends = len(end_ids(engine.config.data.template, engine.tokenizer))
    found: list[tuple[float, bool]] = []
    for few in batched(pairs, batch_size):
        prompts = [engine.prompt(placed(question), answer) for question, answer in few]
        longest = max(len(prompt.encoded.codes) for prompt in prompts)
        batch = engine.batch(prompts, engine.room(longest, 1)[0], batch_size)
        visual = engine.encoders(engine.params, batch) if batch.query_ends.size else None
        before, wanted = _wanted(np.asarray(batch.labels), ends)
        batch = batch._replace(pixels=None, features=None)
        given = spread_rows((batch, before, wanted), engine.mesh)
        sums, greedy = map(on_host, score(engine.params, given[0], visual, *given[1:]))
        found += list(zip(sums.tolist(), greedy.tolist(), strict=True))[: len(prompts)]
    return found


@functools.partial(jax.jit, static_argnums=0)
def _score(
    model: VLM, params: Params, batch: Batch, visual: Visual | None, before: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sums float32 [B] and whether they are greedy bool [B], over [B, L]: positions whose next tokens are
    wanted, -1 where there is none."""
    read: PyTree = model.apply({"params": params}, batch, visual)
    hidden = jnp.take_along_axis(read, jnp.maximum(before, 0)[..., None], axis=1)
    spoken: PyTree = model.apply({"params": params}, hidden, method=VLM.logits)
    logits = spoken.astype(jnp.float32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[..., None], axis=-1)[..., 0]
    real = before >= 0
    greedy = (logits.argmax(axis=-1) == wanted) | ~real
    return jnp.sum(jnp.where(real, chosen, 0.0), axis=1), jnp.all(greedy, axis=1)


def _wanted(labels: np.ndarray, ends: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, L] positions before the labelled tokens, and these; the last `ends` of a row are left out."""
    rows = [np.flatnonzero(row != IGNORE) for row in labels]
    rows = [row[: len(row) - ends] for row in rows]
    width = round_up(max(1, *map(len, rows)))  # Few widths: few programs.
    before, wanted = np.full((len(rows), width), -1, np.int32), np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        before[number, : len(row)], wanted[number, : len(row)] = row - 1, labels[number, row]
    return before, wanted
