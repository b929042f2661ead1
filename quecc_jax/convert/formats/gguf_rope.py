"""LLaMA 3's rotary scaling from the divisors of its frequencies, which is all that GGUF files keep of it."""

import math

import numpy as np

from quecc_jax.config import DecoderConfig, RopeScaling
from quecc_jax.models.rope import rotary_frequencies

_LENGTH, _SLOW, _RATIO = 8192, 1.0, 4.0
"""What every published model has: original_max_position_embeddings, low_freq_factor, and high_freq_factor
in units of it. Divisors determine the two factors' quotients by the length alone."""

_TOLERANCE = 2e-6
"""Relative error of frequencies that passed through float32 divisors."""


def scaling_of(divisors: np.ndarray, head: int, theta: float, length: int | None = None) -> RopeScaling:
    """The scaling that divides each pair's frequency by such a number.

    With u = length * frequency / 2 pi turns, LLaMA 3 keeps the frequency where u > fast, divides it by
    `factor` where u < slow, and in between by 1 / ((1 - s) / factor + s), s = (u - slow) / (fast - slow).

    Args:
      divisors: float32 [head / 2], the fastest pair first.
      head: width of a head.
      theta: base of the frequencies.
      length: the length of the pretraining, where it is known.

    Raises:
      ValueError: "has ..." or "is ...": no such scaling gives these divisors.
    """
    plain = DecoderConfig(head_width=head, rope_theta=theta)
    frequencies = rotary_frequencies(plain, 1).astype(np.float64)
    if divisors.shape != frequencies.shape:
        raise ValueError(f"has {divisors.size} numbers for {frequencies.size} rotary pairs")
    factor = float(divisors[-1])
    if (divisors == 1).all():
        return RopeScaling()
    if (divisors == factor).all():
        return RopeScaling("linear", factor)
    usual = RopeScaling("llama3", factor, _SLOW, _SLOW * _RATIO, length or _LENGTH)
    if 1 < factor < math.inf and ((divisors >= 1) & (divisors <= factor)).all():
        if _explains(usual, plain, divisors):
            return usual
        fitted = _fitted(divisors.astype(np.float64), frequencies, factor, length)
        if _explains(fitted, plain, divisors):
            return fitted
    raise ValueError("is no scaling of LLaMA 3's kind")


def _fitted(divisors: np.ndarray, frequencies: np.ndarray, factor: float, length: int | None) -> RopeScaling:
    """The scaling through the pairs in between, whose s is linear in the frequency."""
    between = (divisors > 1) & (divisors < factor)
    share = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    turns = (length or _LENGTH) * frequencies / (2 * math.pi)
    if between.sum() > 1:
        slope, start = np.polyfit(turns[between], share[between], 1)
        slow, fast = -start / slope, (1 - start) / slope
    elif between.any():
        slow = float(turns[between][0]) / (1 + (_RATIO - 1) * float(share[between][0]))
        fast = _RATIO * slow
    else:
        slow, fast = float(turns[divisors == factor].max()), float(turns[divisors == 1].min())
    slow, fast = float(slow), float(fast)
    # A whole length with a slow factor of 1 is how models are described.
    whole = round(_LENGTH / slow) if slow > 0 else 0
    if length is not None or not whole or abs(whole * slow / _LENGTH - 1) > 1e-4:
        return RopeScaling("llama3", factor, slow, fast, length or _LENGTH)
    fast *= whole / _LENGTH
    near = round(fast, 2)
    return RopeScaling("llama3", factor, 1.0, near if abs(near / fast - 1) < 1e-3 else fast, whole)


def _explains(scaling: RopeScaling, plain: DecoderConfig, divisors: np.ndarray) -> bool:
    """Whether a scaling gives the frequencies that the divisors give."""
    if not 0 < scaling.slow_turns < scaling.fast_turns:
        return False
    config = DecoderConfig(head_width=plain.head_width, rope_theta=plain.rope_theta, rope_scaling=scaling)
    ours = rotary_frequencies(config, 1).astype(np.float64)
    theirs = rotary_frequencies(plain, 1).astype(np.float64) / divisors
    return bool(np.abs(ours / theirs - 1).max() < _TOLERANCE)
