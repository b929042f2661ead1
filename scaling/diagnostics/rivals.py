"""Rival laws for the same scores, ranked by the corrected Akaike criterion (AICc).

    product      A N^-alpha T^-beta + D       the law under the fit's own convention
    no floor     A N^-alpha T^-beta
    additive     A N^-alpha + B T^-beta + D
    log-linear   a - b ln N - c ln T
    interaction  A N^-alpha T^-beta exp(c ln N ln T) + D
    text counts  A N^-alpha (Q + V)^-beta + D, Q given
    text weighs  A N^-alpha (q + V)^-beta + D, q fitted
    varying      1 - S N^alpha (V (V + n0) / (1 + n0))^(beta / 2)

The last is of Li, Zhou, Zhao and Zhao, JMLR 26(253), 2025: a score S(n) = c / n^alpha(n) of n visual tokens whose
exponent varies, alpha(n) = (beta / 2) log_n((1 + n0) / (n + n0)) - beta / 2 (the authors' repository,
tenghuilee/ScalingCapFusedVisionLM, blog_zh.md). Put in, the logarithm goes: c (n (n + n0) / (1 + n0))^(beta / 2), which
rises as n^(beta / 2) far below the balance n0 and as n^beta far above. Their models have one size of LLM: the factor
N^alpha is ours, as the product law has one. It is a law of scores, not of errors, has no D, and n is V whatever T
counts.

A criterion lower by 2 is weak evidence, by 10 strong.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from scaling.fit import Fit
from scaling.table import ScoreTable

_STARTS = 2
"""Random ones besides the fit's constants."""

Form = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Errors from constants, ln N and V."""


class RivalFit(NamedTuple):
    """One law's least-squares fit."""

    name: str
    formula: str
    constants: dict[str, float]
    sse: float
    n_parameters: int
    aicc: float
    """Infinite where there are too few scores for the criterion."""
    weight: float
    """Akaike weight: the share of belief among the laws compared."""


class _Form(NamedTuple):
    name: str
    formula: str
    predict: Form
    low: dict[str, float]
    high: dict[str, float]
    """Bounds of the constants, in order; starts are drawn from them."""
    near: list[float]
    """A start from the fit's constants."""


def compare(table: ScoreTable, fit: Fit, seed: int = 0) -> list[RivalFit]:
    """Fits every law to the observed cells; the best by AICc first.

    Laws with more constants than scores are left out.
    """
    i, j = np.nonzero(np.isfinite(table.score))
    n, v, y = np.log(table.params_b[i]), table.visual_tokens[j], table.error[i, j]
    rng = np.random.default_rng(seed)
    fits = []
    for form in _forms(fit):
        k = len(form.low)
        if k > len(y):
            continue
        constants, sse = _least_squares(form, n, v, y, rng)
        fits.append((form, dict(zip(form.low, constants, strict=True)), sse, aicc(sse, len(y), k)))
    best = min(entry[-1] for entry in fits)
    raw = [math.exp(-(c - best) / 2) if math.isfinite(c) else 0.0 for *_, c in fits]
    total = sum(raw) or 1.0
    ranked = [
        RivalFit(form.name, form.formula, constants, sse, len(form.low), criterion, share / total)
        for (form, constants, sse, criterion), share in zip(fits, raw, strict=True)
    ]
    return sorted(ranked, key=lambda rival: rival.aicc)


def aicc(sse: float, n_points: int, n_parameters: int) -> float:
    """Corrected Akaike criterion of a least-squares fit; the noise counts as one more constant."""
    k = n_parameters + 1
    if n_points - k - 1 <= 0:
        return math.inf
    noise = max(sse / n_points, 1e-30)
    return n_points * math.log(noise) + 2 * k + 2 * k * (k + 1) / (n_points - k - 1)


def _least_squares(
    form: _Form, n: np.ndarray, v: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> tuple[list[float], float]:
    low, high = (np.array(list(ends.values())) for ends in (form.low, form.high))
    best = None
    drawn = [rng.uniform(np.maximum(low, -1), np.minimum(high, 1)) for _ in range(_STARTS)]
    for start in [np.clip(form.near, low, high), *drawn]:
        found = least_squares(
            lambda c: form.predict(c, n, v) - y,
            start,
            bounds=(low, high),
            jac="3-point",
            x_scale="jac",
            ftol=1e-12,
            xtol=1e-12,
            gtol=1e-12,
            max_nfev=300,
        )
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    return [float(c) for c in best.x], float(2 * best.cost)


def _forms(fit: Fit) -> list[_Form]:
    q, p = fit.law.query_tokens, fit.law.params
    t = "V" if fit.law.tokens == "V" else "(Q + V)"
    ten = (-10.0, 10.0)
    box = {"A": (0.0, 10.0), "B": (0.0, 10.0), "alpha": (0.0, 5.0), "beta": (0.0, 5.0), "D": (0.0, 1.0)}
    box |= {"a": ten, "b": ten, "c": ten, "q": (0.0, 1e4)}
    box |= {"S": (0.0, 10.0), "n0": (0.0, 1e4)}
    near = {**p._asdict(), "B": p.A / 2, "a": p.A + p.D, "b": p.A * p.alpha, "c": 0.0, "q": 1.0}
    near |= {"S": 1 - p.A - p.D, "n0": 30.0}

    def form(name: str, formula: str, constants: str, predict: Form, **own: tuple[float, float]) -> _Form:
        bounds = {key: own.get(key, box[key]) for key in constants.split()}
        low, high = ({key: ends[side] for key, ends in bounds.items()} for side in (0, 1))
        return _Form(name, formula, predict, low, high, [near[key] for key in bounds])

    def log_t(v: np.ndarray) -> np.ndarray:
        return np.log(fit.law.total(v))

    def product(c: np.ndarray, n: np.ndarray, log_t: np.ndarray) -> np.ndarray:
        return np.asarray(c[0] * np.exp(-c[1] * n - c[2] * log_t) + (c[3] if len(c) > 3 else 0.0))

    def additive(c: np.ndarray, n: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.asarray(c[0] * np.exp(-c[1] * n) + c[2] * np.exp(-c[3] * log_t(v)) + c[4])

    def interaction(c: np.ndarray, n: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.asarray(c[0] * np.exp(-c[1] * n - c[2] * log_t(v) + c[4] * n * log_t(v)) + c[3])

    def varying(c: np.ndarray, n: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.asarray(1 - c[0] * np.exp(c[1] * n) * (v * (v + c[3]) / (1 + c[3])) ** (c[2] / 2))

    whole = f"A / N^alpha / {t}^beta"
    forms = [
        form("product", f"{whole} + D", "A alpha beta D", lambda c, n, v: product(c, n, log_t(v))),
        form("no floor", whole, "A alpha beta", lambda c, n, v: product(c, n, log_t(v))),
        form("additive", f"A / N^alpha + B / {t}^beta + D", "A alpha B beta D", additive),
        form(
            "log-linear", f"a - b ln N - c ln {t}", "a b c", lambda c, n, v: c[0] - c[1] * n - c[2] * log_t(v)
        ),
        form(
            "interaction", f"{whole} * exp(c ln N ln {t}) + D", "A alpha beta D c", interaction, c=(-1.0, 1.0)
        ),
        form(
            "text weighs",
            "A / N^alpha / (q + V)^beta + D, q fitted",
            "A alpha beta D q",
            lambda c, n, v: product(c, n, np.log(c[4] + v)),
        ),
        form("varying", "1 - S N^alpha (V (V + n0) / (1 + n0))^(beta / 2)", "S alpha beta n0", varying),
    ]
    if fit.law.tokens == "V":
        formula = f"A / N^alpha / ({q:g} + V)^beta + D"
        forms.append(
            form("text counts", formula, "A alpha beta D", lambda c, n, v: product(c, n, np.log(q + v)))
        )
    return forms
