"""Shrunk images: what `downsample` sees, and that a model of it is trained and tested."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import DataConfig
from quecc_jax.data.images import normalise
from quecc_jax.data.sources.feature_store import read_features
from quecc_jax.data.sources.pool import read_pool
from quecc_jax.experiments.cell import run_cell
from quecc_jax.experiments.grid import Grid, jobs
from quecc_jax.experiments.testbed import steps
from quecc_jax.experiments.testbed.build import build_pool, shrink_pool
from quecc_jax.experiments.testbed.grids import Decoder, Recipe, downsample_cells, preparation, shrunk
from quecc_jax.experiments.testbed.settings import Testbed
from quecc_jax.fingerprint import tower_fingerprint
from quecc_jax.models.bicubic import resized_square
from quecc_jax.models.towers.vit import VisionTower
from quecc_jax.train.checkpoint import load_params

EXAMPLES = Path(__file__).parents[3] / "examples"
RECIPE = Recipe(
    testbed=Testbed(images=6, test_images=3, questions=4, start=str(EXAMPLES), shrunk=(4,)),
    decoders=(Decoder("M", 64, 2),),
    stage1_steps=1,
    stage2_steps=2,
    batch_size=8,
)


def test_a_shrunk_pool_has_the_means_of_its_pixels(tmp_path):
    pool = build_pool("mosaic", "test", tmp_path / "pool", 24, 5, 3, m=2)
    small = shrink_pool(pool, tmp_path / "small", 8)
    means = np.asarray(pool.images, float).reshape(5, 8, 3, 8, 3, 3).mean(axis=(2, 4))
    # Pillow rounds rows and columns one after the other.
    assert np.abs(small.images - means).max() <= 1 and small.images.dtype == np.uint8
    assert small.rows == pool.rows and np.array_equal(small.cells, pool.cells)
    assert np.array_equal(small.sources, pool.sources)
    assert small.meta == {**pool.meta, "image_size": 8}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("shrunk"))
    before, shared = preparation(RECIPE, out)
    made = Grid("x", out, (*downsample_cells(RECIPE, out), *shared), tuple(before), RECIPE.testbed)
    for step in made.steps:
        getattr(steps, step.function.partition(":")[2])(made, step, lambda *_: None)
    return made


def test_the_steps_come_before_what_needs_them(grid):
    names = [job.name for job in jobs(grid)]
    assert names.index("tower") < names.index("shrunk") < names.index("comparison-downsample-v4-s0")


def test_features_are_those_of_the_frozen_tower_with_resized_positions(grid):
    vision = RECIPE.testbed.vision
    small = shrunk(vision, 4)
    assert (small.image_size, small.grid, small.patches) == (24, 2, 4)
    params = load_params(f"{EXAMPLES}/model", ["vision"])[1]["vision"]
    pool = read_pool(f"{grid.out}/data/mosaic-test-shrunk4")
    features = np.array(read_features(pool.directory, tower_fingerprint(params, small, DataConfig())))
    # A tower whose own grid is that small, with positions that were resized beforehand.
    table = np.asarray(params["position_embedding"])
    positions = np.concatenate([table[:1], resized_square(jnp.asarray(table[1:]), 2, True)])
    alone = dataclasses.replace(vision, image_size=24)
    states: Any = VisionTower(alone).apply(
        {"params": {**params, "position_embedding": positions}}, normalise(pool.images[:], vision.pixels)
    )
    assert features.shape == (3, 4, 4, 64) and features.std() > 0.1
    np.testing.assert_allclose(features.astype(np.float32), states, atol=2e-2, rtol=2e-2)


def test_a_model_of_shrunk_images_is_trained_and_tested(grid):
    (cell,) = (cell for cell in grid.cells if cell.compressor == "downsample")
    assert cell.runs[-1].model.visual_tokens == 4 and cell.runs[-1].model.compressor.name == "none"
    assert {source.path for run in cell.runs for source in run.data.sources} == {
        f"{grid.out}/data/{task}-train-shrunk4" for task in RECIPE.testbed.tasks
    }
    result = run_cell(grid, cell, lambda *_: None)
    assert {row["visual_tokens"] for row in result["rows"]} == {4}
    assert {row["task"] for row in result["rows"]} == set(RECIPE.testbed.tasks)
