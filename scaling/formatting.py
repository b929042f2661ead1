"""Costs and shares as people write them, and the type of what is written as JSON."""

from typing import Any, Literal

from quecc_jax.pages.numbers import flops_text

Record = dict[str, Any]
"""A JSON object: plain values, null where a number does not exist."""
Kind = Literal["flops", "seconds", "usd"]
"""How a query is paid for: FLOPs, seconds until a batch is answered, dollars per million queries."""
PER: dict[Kind, str] = {"flops": "per query", "seconds": "per batch", "usd": "per million queries"}
COST_AXIS: dict[Kind, str] = {
    "flops": "FLOPs per query",
    "seconds": "time per batch",
    "usd": "dollars per million queries",
}


def amount(value: float, kind: Kind) -> str:
    """A cost with its unit."""
    if kind == "flops":
        return flops_text(value)
    if kind == "seconds":
        return f"{1e3 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
    return f"${value:.3g}"


def percent(share: float) -> str:
    """`12.34 %`."""
    return f"{100 * share:.2f} %"


def ends(low: float, high: float) -> str:
    """The ends of an interval of shares."""
    return f"{100 * low:.2f} to {100 * high:.2f} %"
