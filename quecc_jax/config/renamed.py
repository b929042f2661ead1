"""Settings that had other names in version 0.1, in the config.json of its runs."""

from collections.abc import Callable
from typing import Any, NamedTuple


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


def with_new_names(data: Any, where: str = "") -> tuple[Any, list[str]]:
    """Nested settings under today's names, and what was renamed, as `old is now new`.

    A setting that stands under both names keeps the old one, which `from_dict` refuses.
    """
    if not isinstance(data, dict):
        return data, []
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
