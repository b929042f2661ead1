"""How the next token follows from its logits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from quecc_jax.errors import UserError


class Sampling(NamedTuple):
    """Settings of a draw; they are inputs of a compiled program, so changing them compiles nothing. There, rows may
    have settings of their own: arrays [B] in place of the numbers.

    They apply in the order of transformers' `generate`: penalty, temperature, top-k, top-p.
    """

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token."""
    top_k: int = 0
    """Draw from so many of the likeliest tokens; 0 is no limit."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens whose probabilities sum to at least this (nucleus sampling,
    arXiv 1904.09751)."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt's text and of the answer less likely to come again: positive
    logits are divided by it, negative ones multiplied (CTRL, arXiv 1909.05858, section 4.1)."""


def unless_greedy(sampling: Sampling) -> Sampling | None:
    """The settings; None for those that always take the model's likeliest token, which need no draw.

    Raises:
      UserError: a setting is out of its range; names it as an option.
    """
    s = sampling
    checks = [
        (s.temperature >= 0, f"--temperature is {s.temperature}; give 0 (greedy) or more"),
        (s.top_k >= 0, f"--top-k is {s.top_k}; give 0 (no limit) or more"),
        (0 < s.top_p <= 1, f"--top-p is {s.top_p}; give more than 0 and at most 1"),
        (
            s.repetition_penalty > 0,
            f"--repetition-penalty is {s.repetition_penalty}; give more than 0, 1 for none",
        ),
    ]
    for holds, message in checks:
        if not holds:
            raise UserError(message)
    return None if s.temperature == 0 and s.repetition_penalty == 1 else s


def per_row(settings: Sequence[Sampling | None]) -> Sampling:
    """The settings of rows as a compiled program takes them, arrays [B]; None is greedy."""
    greedy = Sampling(temperature=0.0)
    rows = [one or greedy for one in settings]
    arrays: Any = (
        np.array([one.temperature for one in rows], np.float32),
        np.array([one.top_k for one in rows], np.int32),
        np.array([one.top_p for one in rows], np.float32),
        np.array([one.repetition_penalty for one in rows], np.float32),
    )
    return Sampling(*arrays)


def process(logits: jax.Array, seen: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits to draw from, -inf where a token is excluded.

    Args:
      logits: float32 [B, vocab].
      seen: bool [B, vocab], tokens that the repetition penalty meets.
      sampling: numbers, or arrays [B]; a temperature of 0 divides by nothing.

    Returns:
      float32 [B, vocab]. Tokens as likely as the last one that top-k or top-p admits are admitted too.
    """
    s = _columns(sampling)
    penalised = jnp.where(logits < 0, logits * s.repetition_penalty, logits / s.repetition_penalty)
    logits = jnp.where(seen, penalised, logits)
    logits = logits / jnp.where(s.temperature > 0, s.temperature, 1.0)
    # Sorting a vocabulary costs as much as a small model's step.
    limited = jnp.any((s.top_k > 0) | (s.top_p < 1))
    return jax.lax.cond(limited, _limit, lambda logits, s: logits, logits, s)


def _columns(sampling: Sampling) -> Sampling:
    """Settings that go with logits [B, vocab]: arrays [B, 1], or [1]."""
    arrays: Any = (jnp.asarray(value)[..., None] for value in sampling)
    return Sampling(*arrays)


def _limit(logits: jax.Array, s: Sampling) -> jax.Array:
    vocab = logits.shape[-1]
    falling = -jnp.sort(-logits, axis=-1)
    k = jnp.clip(jnp.where(jnp.asarray(s.top_k) > 0, s.top_k, vocab), 1, vocab)
    k = jnp.broadcast_to(k, (*logits.shape[:-1], 1))
    falling = jnp.where(falling < jnp.take_along_axis(falling, k - 1, axis=-1), -jnp.inf, falling)
    probabilities = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # Rounded sums reach 1 before the last tokens, which a top-p of 1 admits.
    nucleus = (before < s.top_p) | (jnp.asarray(s.top_p) >= 1)
    inside = (nucleus & (falling > -jnp.inf)).at[..., 0].set(True)
    least = jnp.min(jnp.where(inside, falling, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)


def choose(
    logits: jax.Array, seen: jax.Array, sampling: Sampling, keys: jax.Array, step: jax.Array
) -> jax.Array:
    """The next token int32 [B] of each row, drawn with keys[r] folded with the row's step, int32 [B] or [].

    A row's draw depends on its own key, logits and step alone, not on its neighbours.
    """
    logits = process(logits, seen, sampling)
    likeliest = jnp.argmax(logits, axis=-1)
    drawing = jnp.asarray(sampling.temperature) > 0

    def draw() -> jax.Array:
        folded = jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(step, keys.shape))
        return jnp.where(drawing, jax.vmap(jax.random.categorical)(folded, logits), likeliest)

    # Random numbers for a vocabulary cost as much as a small model's step.
    return jax.lax.cond(jnp.any(drawing), draw, lambda: likeliest).astype(jnp.int32)
