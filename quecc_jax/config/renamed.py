"""Settings that had other names in version 0.1, in the config.json of its runs."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from quecc_jax.config.compressors import REGISTRY


class Renamed(NamedTuple):
    """Where a setting's value is now, and how it follows from the old one."""

    name: str
    value: Callable[[Any], Any] = lambda old: old
    how: str = ""
    """The same for a person, to stand after the name; empty where the value stays."""


RENAMED = {
    "model.vision.attention": Renamed("keep_attention"),
    "model.attention": Renamed("attention_kernel"),
    "model.gradients": Renamed("grad_reduce_dtype"),
    "data.window": Renamed("lookahead_rows"),
    # Halvings of max_length; itself is a length, too.
    "data.halvings": Renamed(
        "num_length_buckets", lambda old: old + 1 if type(old) is int else old, ", one more than the halvings"
    ),
    "train.accumulation": Renamed("grad_accum_steps"),
}
"""By dotted name; the new one stands in the same group."""


SHARED = {
    "kernel": 24,
    "stride": 24,
    "heads": 8,
    "queries": 256,
    "query": "question",
    "fusion_layers": 4,
    "memory": 4,
    "registers": False,
    "rounds": 1,
    "tokens": 0,
    "elastic": [],
}
"""Settings that stood beside every compressor's name in version 0.1, whether it read them or not, with their
defaults there."""


def _own_settings(compressor: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings of a compressor that it reads, and a note for each that was set in vain. V of one that takes
    no such setting was an error then, and is one still."""
    name = compressor.get("name", "quecc")
    fields = next(
        ({f.name for f in dataclasses.fields(kind)} for kind in REGISTRY if kind.name == name), None
    )
    if fields is None:
        return compressor, []
    dropped = {k: v for k, v in compressor.items() if k in SHARED and k not in fields}
    dropped = {k: v for k, v in dropped.items() if k not in ("tokens", "elastic") or v == SHARED[k]}
    notes = [
        f"model.compressor.{k} {v!r} is not read by {name}" for k, v in dropped.items() if v != SHARED[k]
    ]
    return {k: v for k, v in compressor.items() if k not in dropped}, notes


def with_new_names(data: Any, where: str = "") -> tuple[Any, list[str]]:
    """Nested settings under today's names, without those that the compressor does not read, and what was changed,
    as `old is now new`.

    A setting that stands under both names keeps the old one, which `from_dict` refuses.
    """
    if not isinstance(data, dict):
        return data, []
    if where == "model.compressor":
        return _own_settings(data)
    found, notes = {}, list[str]()
    for key, value in data.items():
        name = f"{where}.{key}" if where else key
        new = RENAMED.get(name)
        if new is not None and new.name not in data:
            found[new.name] = new.value(value)
            notes.append(f"{name} is now {where}.{new.name}")
        else:
            found[key], inner = with_new_names(value, name)
            notes += inner
    return found, notes
