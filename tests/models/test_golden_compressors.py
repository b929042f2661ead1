"""TokenPacker and MQT against the originals' arrays, and their parameters' way there and back."""

from pathlib import Path

import numpy as np
import pytest

from quecc_jax.errors import UserError
from tests.golden_check import TOLERANCE, check
from tests.golden_names import MQT, TOKENPACKER

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = sorted([*FOLDER.glob("tokenpacker_*.npz"), *FOLDER.glob("mqt_*.npz")])


def parameters(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """The original's state dict, and the heads."""
    with np.load(path) as file:
        params = {k.removeprefix("param/"): v for k, v in file.items() if k.startswith("param/")}
        return params, int(file["meta"][1])


def test_the_golden_files_are_there():
    assert len(GOLDEN) == 2


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_outputs_and_all_gradients_equal_the_originals(path):
    errors = check(path)
    assert len(errors) > 12 and max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_parameters_come_in_and_go_out_unchanged(path):
    params, heads = parameters(path)
    names = MQT if "pos_embed" in params else TOKENPACKER
    back = names.to_torch(names.from_torch(params, heads), params, heads)
    assert back.keys() == params.keys()
    for name, array in back.items():
        # Our own constants stand for the original's.
        np.testing.assert_allclose(array, params[name], rtol=0, atol=1e-6 if name == "pos_embed" else 0)


def test_other_positions_are_refused():
    params, heads = parameters(FOLDER / "mqt_g12_q16_v5.npz")
    with pytest.raises(UserError, match="pos_embed is not the sine-cosine positions of a square of 16"):
        MQT.from_torch(params | {"pos_embed": params["pos_embed"] + 0.1}, heads)
