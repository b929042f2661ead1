"""Whatever happens to a file that is read back: what was written, or a sentence that names it; never another value."""

import collections
import pickle
import random
import shutil
import traceback
from pathlib import Path

import pytest

from quecc_jax.errors import UserError
from tests import stores_data, stores_json
from tests.stores import Store, mutate

# A load that fails leaves orbax's other reads of it behind, which Python remarks on much later.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning"
)

STORES = (*stores_data.STORES, *stores_json.STORES)
SENTENCE = 900
"""Characters of the longest message."""


def outcome(store: Store, folder: Path, capfd) -> tuple[str, bytes]:
    """("read", value), ("said", value) where stderr names the folder, ("refused", b"") or ("fault", traceback)."""
    capfd.readouterr()
    try:
        value = pickle.dumps(store.read(folder))
    except UserError as error:
        text = str(error)
        fine = str(folder) in text and "\n" not in text and len(text) < SENTENCE
        return ("refused", b"") if fine else ("fault", text.encode())
    except Exception:
        return "fault", traceback.format_exc().encode()
    return ("said" if str(folder) in capfd.readouterr().err else "read"), value


def damaged(store: Store, root: Path, count: int, seed: int, capfd) -> collections.Counter[str]:
    """How often each outcome came of so many mutations; fails on the first that is wrong."""
    whole, other, folder = root / "whole", root / "other", root / "store"
    for one, number in ((whole, 0), (other, 1)):
        one.mkdir()
        store.make(one, number)
    shutil.copytree(whole, folder)
    kind, value = outcome(store, folder, capfd)
    assert kind == "read", value
    allowed = {value}
    if store.older is not None:
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        store.older(folder)
        kind, older = outcome(store, folder, capfd)
        assert kind == "said" and older != value
        allowed.add(older)
    rng, counts, wrong = random.Random(seed), collections.Counter[str](), []
    for number in range(count):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        done = mutate(folder, other, rng)
        kind, read = outcome(store, folder, capfd)
        counts[kind] += 1
        silent = kind == "read" and read != value
        made_up = kind == "said" and store.older is not None and read not in allowed
        if kind == "fault" or silent or made_up:
            wrong.append(f"{number}: {done}: {'silent' if silent or made_up else read.decode()[-1500:]}")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:5])
    return counts


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_what_is_read_was_written_or_is_named(store, tmp_path, capfd):
    counts = damaged(store, tmp_path, 12, 0, capfd)
    assert counts["refused"] + counts["said"] + counts["read"] == 12


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES, ids=lambda store: store.name)
def test_a_hundred_mutations_of_every_store(store, tmp_path, capfd):
    counts = damaged(store, tmp_path, 100, 1, capfd)
    print(f"{store.name}: {dict(counts)}")
    assert counts["refused"] + counts["said"] >= 20 or store.name in ("lengths", "notes of shards")
