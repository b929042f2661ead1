"""Numbers as people write them."""

import math


def size_name(params_b: float) -> str:
    """A size in billions as people write it: 7B, 0.5B, 40M, 120k."""
    if params_b >= 0.1:
        return f"{params_b:.3g}B"
    return f"{params_b * 1e3:.3g}M" if params_b >= 1e-3 else f"{params_b * 1e6:.3g}k"


def flops_text(value: float) -> str:
    """FLOPs with an SI prefix, three digits."""
    exponent = min(max(int(math.log10(max(value, 1)) // 3), 0), 6)
    return f"{value / 1000**exponent:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[exponent]}FLOP"


def percent_text(mean: float, error: float) -> str:
    """A share and its standard error in percent, without the unit."""
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


def p_text(p: float) -> str:
    """A p value with two digits; empty where there is none (NaN)."""
    return "" if math.isnan(p) else f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"
