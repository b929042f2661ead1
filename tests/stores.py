"""The stores of this project, each with a way to make a small one and to read it, and how they may be damaged.

A new store joins STORES of one of the modules that `tests/test_stores.py` collects.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Store(NamedTuple):
    """One kind of files that are written and read back.

    Attributes:
      name: for messages.
      make: writes one into a folder that exists, another one for another seed, with the real writer.
      read: all that it holds, as something that pickles alike when it is alike; UserError where it cannot be read.
      older: takes the newest away, where an older one is used, loudly, in place of one that is damaged.
    """

    name: str
    make: Callable[[Path, int], None]
    read: Callable[[Path], Any]
    older: Callable[[Path], None] | None = None


def files(folder: Path) -> list[Path]:
    """What a mutation may hit."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def mutate(folder: Path, other: Path, rng: random.Random) -> str:
    """Damages one file of a store, or swaps two, or takes one of another store; says what was done."""
    path = rng.choice(files(folder))
    content = path.read_bytes()
    kind = rng.choice(
        ("flip", "flip", "flip", "cut", "delete", "swap", "foreign", "grow", "zeros", "lines", "edit", "edit")
    )
    where = path.relative_to(folder)
    if kind == "delete" or not content:
        path.unlink()
        return f"delete {where}"
    if kind == "swap":
        alike = [one for one in files(folder) if one.suffix == path.suffix and one != path]
        second = rng.choice(alike or files(folder))
        content, taken = path.read_bytes(), second.read_bytes()
        path.write_bytes(taken)
        second.write_bytes(content)
        return f"swap {where} and {second.relative_to(folder)}"
    if kind == "foreign":
        twins = [one for one in files(other) if one.relative_to(other) == where]
        shutil.copyfile((twins or files(other))[0], path)
        return f"foreign {where}"
    if kind == "lines" and (lines := content.splitlines(keepends=True))[1:]:
        at = rng.randrange(len(lines) - 1)
        change = rng.choice(("lost", "twice", "exchanged"))
        put = {"lost": [], "twice": lines[at : at + 1] * 2, "exchanged": [lines[at + 1], lines[at]]}[change]
        path.write_bytes(b"".join(lines[:at] + put + lines[at + (2 if change == "exchanged" else 1) :]))
        return f"line {at} of {where} {change}"
    if kind == "edit" and (edited := _edited(content, rng)) is not None:
        path.write_bytes(edited)
        return f"edit {where} to {edited[:300]!r}"
    at = rng.randrange(len(content))
    changed = bytearray(content)
    if kind == "cut":
        changed = changed[:at]
    elif kind == "grow":
        changed += rng.randbytes(9)
    elif kind == "zeros":
        changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    else:
        changed[at] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    return f"{kind} {where} at {at} of {len(content)}"


def _edited(content: bytes, rng: random.Random) -> bytes | None:
    """JSON, or a line of JSON, with one value changed as a hand or a faulty program would; None if it is none."""
    lines = content.decode("utf-8", "replace").splitlines()
    try:
        whole = json.loads(content)
        lines, number = [], 0
    except ValueError:
        number = rng.randrange(len(lines)) if lines else 0
        try:
            whole = json.loads(lines[number])
        except (ValueError, IndexError):
            return None
    places = list(_places(whole))
    if not places:
        return None
    parent, key = rng.choice(places)
    absurd: tuple[Any, ...] = (-1, 2**70, 10**400, 1e308, "../x", None, [], {}, True, "9" * 50)
    was = parent[key]
    if rng.random() < 0.5:
        parent[key] = was + 1 if isinstance(was, int | float) else rng.choice(absurd)
    elif isinstance(parent, dict) and rng.random() < 0.5:
        parent[f"{key}x"] = parent.pop(key)
    else:
        del parent[key]
    text = json.dumps(whole)
    return ("\n".join([*lines[:number], text, *lines[number + 1 :]]) + "\n").encode()


def _places(value: Any):
    """(container, key) of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(inner):
        yield value, key
        yield from _places(one)
