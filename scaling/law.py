"""The scaling law of visual tokens and LLM size (arXiv 2411.03312, section 3).

    Y(N, T) = A / N^alpha / T^beta + D

Y is the downstream error (1 - score), N the LLM's parameters in billions, T the tokens the LLM
reads. The paper writes two constants A * B; only their product can be known from scores, so it is
one number here, called A.

The paper's text defines T = Q + V (text and visual tokens), its published code fits T = V and
uses Q only for the cost. The two lead to different advice, so every law carries its convention.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Generic, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from jaxtyping import Bool, Float, Real

from quecc_jax.errors import UserError

Tokens = Literal["V", "Q+V"]
"""What T counts: visual tokens alone, or text and visual tokens together."""

PARAMETERS = ("A", "alpha", "beta", "D")

Numbers = float | Real[np.ndarray, "..."]
"""A number, or an array of them; several of them broadcast against each other."""
Axis = Sequence[float] | Real[np.ndarray, " _"]
"""Sizes in billions, or numbers of visual tokens."""
Leaf = TypeVar("Leaf", covariant=True)


class Params(NamedTuple, Generic[Leaf]):
    """Constants of the law; also a pytree, and with arrays as leaves a batch of laws.

    A is the error above D at N = 1 billion and T = 1; alpha and beta are pure numbers; D is the
    error that neither size nor tokens remove.
    """

    A: Leaf
    alpha: Leaf
    beta: Leaf
    D: Leaf


class Reach(NamedTuple):
    """What a law was fitted on, from the least to the most: sizes in billions, and T."""

    params_b: tuple[float, float]
    tokens: tuple[float, float]

    def lacks(
        self, params_b: Numbers, tokens: Numbers
    ) -> tuple[Bool[np.ndarray, "..."], Bool[np.ndarray, "..."]]:
        """Which sizes and which T lie outside, where the law is extrapolated; rounding aside."""
        size, count = (
            np.asarray((x < low * (1 - 1e-9)) | (x > high * (1 + 1e-9)))
            for x, (low, high) in ((np.asarray(params_b), self.params_b), (np.asarray(tokens), self.tokens))
        )
        return size, count


def error(params: Params[float] | Params[np.ndarray], n: Numbers, t: Numbers) -> Float[np.ndarray, "..."]:
    """A n^-alpha t^-beta + D, for n in billions; the constants, n and t broadcast against each other."""
    return np.asarray(params.A * n**-params.alpha * t**-params.beta + params.D)


def gradient(
    params: Params[float] | Params[np.ndarray], n: Numbers, t: Numbers
) -> Float[np.ndarray, "... 4"]:
    """Derivatives of `error` by (log A, alpha, beta, D)."""
    power = np.asarray(params.A * n**-params.alpha * t**-params.beta)
    return np.stack([power, -power * np.log(n), -power * np.log(t), np.ones_like(power)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Law:
    """Constants together with what T means.

    `query_tokens` is Q, the text tokens of one query. Under T = V it enters the cost only.
    """

    params: Params[float]
    tokens: str = "V"
    query_tokens: float = 50.0

    def __post_init__(self) -> None:
        if self.params.A < 0:
            raise UserError(
                f"The law's constant A must be at least 0, not {self.params.A:g}, by which larger models would "
                "err more; fit it anew."
            )
        if self.tokens not in get_args(Tokens):
            raise UserError(f"The token convention must be 'V' or 'Q+V', not {self.tokens!r}.")
        if not (math.isfinite(self.query_tokens) and self.query_tokens >= 0):
            raise UserError(f"query_tokens must be a number of at least 0, not {self.query_tokens}.")

    def total(self, visual_tokens: Numbers) -> Float[np.ndarray, "..."]:
        """T for V visual tokens under this law's convention, float64, same shape as V."""
        v = np.asarray(visual_tokens, np.float64)
        return np.asarray(v + self.query_tokens) if self.tokens == "Q+V" else v

    def reach(self, params_b: Axis, visual_tokens: Axis) -> Reach:
        """Of a fit to these sizes and token counts, with this law's text tokens."""
        t = self.total(np.asarray(visual_tokens))
        return Reach((float(np.min(params_b)), float(np.max(params_b))), (float(t.min()), float(t.max())))

    def error(self, params_b: Numbers, visual_tokens: Numbers) -> Float[np.ndarray, "..."]:
        """Predicted error in 0..1; sizes in billions and V broadcast against each other."""
        return error(self.params, np.asarray(params_b, np.float64), self.total(visual_tokens))

    def optimal_visual_tokens(self, v_min: float = 1.0, v_max: float = math.inf) -> float:
        """V that minimises the error at a fixed cost N (Q + V), N chosen freely.

        T = V: setting the derivative of Y along N = C / (Q + V) to zero gives
        V* = beta Q / (alpha - beta) for alpha > beta, clipped to the allowed range; for
        alpha <= beta more tokens always win. T = Q + V: Y depends on T^(alpha - beta) alone, so
        the better end of the range wins.
        """
        p = self.params
        if self.tokens == "Q+V":
            return v_min if p.alpha >= p.beta else v_max
        if p.alpha > p.beta:
            return min(max(p.beta * self.query_tokens / (p.alpha - p.beta), v_min), v_max)
        return v_max if p.beta > 0 else v_min

    @property
    def convention(self) -> str:
        """What T counts, in words."""
        return f"T counts {'visual tokens V' if self.tokens == 'V' else 'text and visual tokens Q + V'}"

    def formula(self) -> str:
        """The law with its numbers and its convention, on one line of text."""
        p = self.params
        t = "V" if self.tokens == "V" else f"({self.query_tokens:g} + V)"
        return f"error = {p.A:.4g} / N^{p.alpha:.4g} / {t}^{p.beta:.4g} + {p.D:.4g}"
