"""The whole imported model against the original's arrays, from token ids to gradients and answers."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import golden_model
from tests.golden_pack import unpack
from tests.measure import TOLERANCE

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden directory as the original wrote it, see `tests.golden_pack` for what is left out."""
    folder = tmp_path_factory.mktemp("golden") / "llava_tiny"
    unpack(GOLDEN / "llava_tiny" / "arrays.xz", folder)
    return folder


def test_an_imported_checkpoint_computes_what_the_original_did(folder):
    errors = golden_model.check(folder)
    with np.load(folder / "expected.npz") as expected:
        assert set(expected) <= set(errors)
    templates = json.loads((folder / "templates.json").read_text())
    assert sum(key.startswith("templates/") for key in errors) == 2 * sum(map(len, templates.values()))
    assert {"greedy_ids/a", "greedy_ids/b", "prompt_ids/a", "prompt_ids/b", "query_text"} <= set(errors)
    assert {key: e for key, e in errors.items() if e > TOLERANCE} == {}
