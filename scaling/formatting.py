"""Numbers as people write them."""

import math
from typing import Literal

Kind = Literal["flops", "seconds", "usd"]
"""How a query is paid for: FLOPs, seconds until a batch is answered, dollars per million queries."""
PER: dict[Kind, str] = {"flops": "per query", "seconds": "per batch", "usd": "per million queries"}
COST_AXIS: dict[Kind, str] = {
    "flops": "FLOPs per query",
    "seconds": "time per batch",
    "usd": "dollars per million queries",
}


def size_name(params_b: float) -> str:
    """A size in billions as people write it: 7B, 0.5B, 40M, 120k."""
    if params_b >= 0.1:
        return f"{params_b:.3g}B"
    return f"{params_b * 1e3:.3g}M" if params_b >= 1e-3 else f"{params_b * 1e6:.3g}k"


def flops_text(value: float) -> str:
    """FLOPs with an SI prefix, three digits."""
    exponent = min(max(int(math.log10(max(value, 1)) // 3), 0), 6)
    return f"{value / 1000**exponent:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[exponent]}FLOP"


def amount(value: float, kind: Kind) -> str:
    """A cost with its unit."""
    if kind == "flops":
        return flops_text(value)
    if kind == "seconds":
        return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"${value:.3g}"
