"""What is known of a fitted law: intervals by the method of choice, profiles, and sentences on what they mean."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np

from scaling.diagnostics.bootstrap import Resample, best_count, bootstrap, percentile_intervals
from scaling.diagnostics.lack_of_fit import LackOfFit, lack_of_fit, lack_of_fit_text
from scaling.fit import Fit
from scaling.intervals import Interval, Profile, profiles
from scaling.law import PARAMETERS, Params
from scaling.table import ScoreTable

IntervalMethod = Literal["profile", "bootstrap"]


def findings(fit: Fit, curves: Mapping[str, Profile], ci: dict[str, Interval] | None) -> list[str]:
    """Plain sentences a reader must know before trusting the constants."""
    p, said = fit.law.params, []
    flat = p.alpha == 0 and p.beta == 0
    if flat:
        said.append(
            "Neither larger LLMs nor more visual tokens lower the error in these scores; "
            "the law is their mean, and A and D cannot be told apart."
        )
    for name, what in () if flat else (("alpha", "larger LLMs"), ("beta", "more visual tokens")):
        if name in fit.bounds_hit and getattr(p, name) == 0:
            said.append(
                f"{name} ended on its bound 0: in these scores {what} do not lower the error "
                "(without the bound it would turn negative or stay at zero)."
            )
        elif ci is not None and ci[name][0] < 1e-6 and getattr(fit.bounds.lower, name) == 0:
            said.append(f"The interval of {name} reaches 0: these scores do not establish that {what} help.")
    upper = [n for n in fit.bounds_hit if getattr(p, n) >= getattr(fit.bounds.upper, n) - 1e-9]
    if upper:
        said.append(f"{', '.join(upper)} ended on an upper bound: the box, not the scores, set the value.")
    if "D" in fit.bounds_hit and p.D == 0 and not flat:
        said.append("D ended on its bound 0: the best fit has no floor that size and tokens cannot remove.")
    if not flat:
        said += _not_identified(fit, curves)
    if fit.n_points == fit.n_parameters:
        said.append("There are exactly as many scores as parameters, so the fit cannot show its own error.")
    if not fit.converged:
        said.append(
            "The fit did not converge, or the cross-check found a better one; do not use its constants."
        )
    return said


_LOOSE_FLOOR, _LOOSE_SHARE = 0.02, 0.25
"""Width of D's interval, in error, and width of an exponent's, as a share of it, that are worth a word."""


def _not_identified(fit: Fit, curves: Mapping[str, Profile]) -> list[str]:
    """Which of D, alpha and beta the scores leave open, and what trades against what."""
    floor = curves.get("D")
    if floor is None or floor.interval[1] - floor.interval[0] <= _LOOSE_FLOOR:
        return []
    low, high = floor.interval
    inside = (floor.values >= low) & (floor.values <= high)
    ends = {
        name: [float(f(getattr(floor.params, name)[inside])) for f in (np.min, np.max)]
        for name in ("alpha", "beta")
    }
    loose = [n for n, (a, b) in ends.items() if b - a > _LOOSE_SHARE * getattr(fit.law.params, n)]
    verb = ("D is not", "Neither D nor {} is", "None of D, {} and {} is")[len(loose)].format(*loose)
    return [
        f"{verb} identified by these {fit.n_points} scores: every D from {low:.3f} to {high:.3f} "
        f"fits about equally well (95 %), with alpha between {ends['alpha'][0]:.3f} and "
        f"{ends['alpha'][1]:.3f} and beta between {ends['beta'][0]:.4f} and {ends['beta'][1]:.4f}. "
        "The fitted curve is safer than its constants."
    ]


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """Everything `assess` found. ci and best_count are None where nothing is left to learn from.

    best_count is the 95 % interval of the V that is best at a fixed cost, within the table's range,
    from the bootstrap. bootstrap_ci are the percentiles of the resampled constants.
    """

    ci: dict[str, Interval] | None
    best_count: Interval | None
    ci_method: str
    profiles: Mapping[str, Profile]
    findings: list[str]
    samples: Params[np.ndarray] | None = None
    """The resampled constants, leaves [refits]."""
    bootstrap_ci: dict[str, Interval] | None = None
    lack_of_fit: LackOfFit | None = None
    """None where a score has no standard error, or no degree of freedom is left."""


def assess(
    table: ScoreTable,
    fit: Fit,
    resample: Resample = "residual",
    count: int = 1000,
    seed: int = 0,
    method: IntervalMethod = "profile",
) -> Uncertainty:
    """95 % intervals, the profile of each constant, and what they mean in words.

    The default `profile` is the method that covers the truth as often as it says, near bounds too. A
    Huber loss has no likelihood to profile, so its intervals are the bootstrap's percentiles.
    """
    enough = fit.n_points > fit.n_parameters
    samples = bootstrap(table, fit, resample, count, seed) if enough and count > 0 else None
    drawn = None if samples is None else percentile_intervals(samples)
    best = None if samples is None else best_count(table, fit, samples)
    curves = profiles(table, fit)
    ci, how = None, "none"
    if curves and method == "profile":
        held = {name: (value, value) for name, value in zip(PARAMETERS, fit.law.params, strict=True)}
        ci, how = held | {name: curve.interval for name, curve in curves.items()}, "profile likelihood, 95 %"
    elif drawn is not None:
        ci, how = drawn, f"{resample} bootstrap, {count} refits, percentile, 95 %"
    tested, said = lack_of_fit(table, fit), findings(fit, curves, ci)
    if tested is not None and tested.rejected:
        said.append(lack_of_fit_text(tested))
    return Uncertainty(ci, best, how, curves, said, samples, drawn, tested)
