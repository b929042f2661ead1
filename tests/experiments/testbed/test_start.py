"""A testbed that starts from the parts in `examples/`."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quecc_jax.config import DataConfig
from quecc_jax.data.images import normalise
from quecc_jax.data.sources.feature_store import read_features
from quecc_jax.data.sources.pool import read_pool
from quecc_jax.errors import UserError
from quecc_jax.experiments.grid import jobs
from quecc_jax.experiments.testbed import steps
from quecc_jax.experiments.testbed.grids import Decoder, Recipe, size_grid
from quecc_jax.experiments.testbed.settings import Testbed
from quecc_jax.fingerprint import tower_fingerprint
from quecc_jax.load import load_vlm
from quecc_jax.models.towers.vit import VisionTower

EXAMPLES = Path(__file__).parents[3] / "examples"
RECIPE = Recipe(
    testbed=Testbed(images=4, test_images=3, questions=4, start=str(EXAMPLES)),
    decoders=(Decoder("S", 32, 2), Decoder("M", 64, 2)),
    visual_tokens=(1, 4),
)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return size_grid(RECIPE, str(tmp_path_factory.mktemp("start")), "start")


def test_nothing_is_trained_that_is_given(grid):
    names = {job.name for job in jobs(grid)}
    assert names == {"data", "tower", "baseline", "attention", "S-v1-s0-zero"} | {
        f"{d}-v{v}-s0" for d in "SM" for v in (1, 4)
    }
    first, second = next(cell for cell in grid.cells if cell.name == "M-v4-s0").runs
    assert first.init_from == f"{EXAMPLES}/language/M" and second.init_from == first.out
    assert first.tower_from == second.tower_from == f"{EXAMPLES}/model"


def test_its_tokenizer_and_features_are_those_of_the_given_parts(grid):
    data = steps.make_data(grid, grid.steps[0], lambda *_: None)
    config, params = load_vlm(EXAMPLES / "model")
    assert data["vocabulary"] == config.model.decoder.vocab_size
    record = steps.make_tower(grid, grid.steps[1], lambda *_: None)
    assert record == {"accuracy": {}, "loss": []}
    pool = read_pool(f"{grid.out}/data/mosaic-test")
    vision = config.model.vision
    features = np.array(
        read_features(pool.directory, tower_fingerprint(params["vision"], vision, DataConfig()))
    )
    states: Any = VisionTower(vision).apply(
        {"params": params["vision"]}, normalise(pool.images[:3], vision.pixels)
    )
    assert features.shape == np.shape(states) and features.std() > 0.1
    np.testing.assert_allclose(features.astype(np.float32), states, atol=2e-2, rtol=2e-2)


def test_another_tower_or_none_is_refused(grid, tmp_path):
    wider = dataclasses.replace(RECIPE.testbed.vision, width=32)
    for testbed, message in (
        (dataclasses.replace(RECIPE.testbed, vision=wider), "shape"),
        (
            dataclasses.replace(RECIPE.testbed, start=str(tmp_path)),
            "is this the directory of a run|cannot be copied",
        ),
    ):
        other = size_grid(dataclasses.replace(RECIPE, testbed=testbed), grid.out, "start")
        with pytest.raises(UserError, match=message):
            steps.make_tower(other, other.steps[1], lambda *_: None)
