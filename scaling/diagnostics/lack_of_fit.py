"""Whether scores lie farther from the law than their standard errors allow: a chi-squared test of lack of fit.

chi^2 is the least of sum((y - fit)^2 / stderr^2), whatever loss the law itself was fitted by: at another loss's
constants it would be larger by that alone. Where the law holds and the errors are normal it is distributed as chi^2
with k - p degrees of freedom; a constant that its bound holds is none of the p.

Where the law is rejected its deviations are part of what a score scatters by, and intervals from standard errors alone
would be too narrow by sqrt(chi^2 / (k - p)). Those of `intervals` and of the bootstrap take the variance from the
residuals, law's deviations included, and hold where these are independent from cell to cell
(`benchmarks/scaling_coverage.py --misfit`); where a whole size deviates, no interval of a few sizes does.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc

from scaling.fit import Fit, bounds_hit, cells_of, solve_like, take
from scaling.table import ScoreTable

LEVEL = 0.05
"""A law of less probability is rejected."""


class LackOfFit(NamedTuple):
    """chi2 on dof degrees of freedom, and p, the probability of as much where the law holds."""

    chi2: float
    dof: int
    p: float

    @property
    def rejected(self) -> bool:
        """Whether the standard errors reject the law."""
        return self.p < LEVEL

    @property
    def widening(self) -> float:
        """How many times as far from the law as their standard errors say the scores lie."""
        return math.sqrt(self.chi2 / self.dof)


def lack_of_fit(table: ScoreTable, fit: Fit) -> LackOfFit | None:
    """The test, where every score has a standard error and degrees of freedom are left."""
    observed = np.isfinite(table.score)
    if table.stderr is None or not np.all(table.stderr[observed] > 0):
        return None
    cells = cells_of(table, fit.law, "weighted")
    # A Huber fit's constants may start it, but not its loss.
    best = take(solve_like(dataclasses.replace(fit, loss="weighted"), cells), 0)
    held = len(bounds_hit(best.params, fit.bounds))
    dof = fit.n_points - fit.n_parameters + held
    if dof < 1:
        return None
    chi2 = best.objective * float(np.mean(1 / table.stderr[observed] ** 2))
    return LackOfFit(chi2, dof, float(chdtrc(dof, chi2)))


def lack_of_fit_text(found: LackOfFit) -> str:
    """The test in one sentence."""
    numbers = f"chi² {found.chi2:.1f} on {found.dof} degrees of freedom, p = {found.p:.2g}"
    if not found.rejected:
        return f"The scores lie no farther from the law than their standard errors allow ({numbers})."
    return (
        f"The standard errors reject the law ({numbers}): scores lie {found.widening:.2f} times as far from it as "
        "their standard errors say. Intervals are therefore of the scatter around the law, not of the standard errors, "
        "and hold where each cell deviates by itself; where whole sizes do, they are too narrow."
    )
