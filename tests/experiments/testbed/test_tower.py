"""The tower's training: its objective, its rescaling, and that it learns from training pools only."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax.config import VisionConfig
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed import tower
from quecc_jax.experiments.testbed.build import build_pool
from quecc_jax.experiments.testbed.cells import CLASSES, UNKNOWN
from quecc_jax.models.towers.vit import VisionTower, split_features
from tests.tiny import random_like

VISION = VisionConfig(
    image_size=24, patch_size=6, width=16, depth=2, heads=2, mlp_width=32, select_layer=-2, levels=(1, 2)
)


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Mosaics of 2 x 2 cells on 4 x 4 patches, 20 of either split."""
    root = tmp_path_factory.mktemp("pools")
    return {split: build_pool("mosaic", split, root / split, 24, 20, 2, m=2) for split in ("train", "test")}


def softmax_loss(logits, label):
    return float(np.log(np.exp(logits).sum()) - logits[label])


def test_the_loss_is_the_mean_over_known_cells_of_their_averaged_patches(pools):
    """Against plain loops, on 2 images of 2 x 2 cells with four patches each."""
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=(2, 16, count)).astype(np.float32) for count in CLASSES]
    labels = np.stack([rng.integers(0, count, (2, 4)) for count in CLASSES], axis=-1)
    labels[0, 1, 0] = labels[1, :, 1] = UNKNOWN
    patches = [(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)]
    wanted = 0.0
    for place, scores in enumerate(logits):
        losses = [
            softmax_loss(scores[image, patches[cell]].mean(axis=0), labels[image, cell, place])
            for image in range(2)
            for cell in range(4)
            if labels[image, cell, place] != UNKNOWN
        ]
        wanted += np.mean(losses)
    mean = tower._cell_means(pools["train"], VISION)
    parts = [jnp.asarray(part) for part in logits]
    np.testing.assert_allclose(tower._loss(parts, mean, jnp.asarray(labels)), wanted, rtol=1e-5)
    nothing = jnp.full(labels.shape, UNKNOWN)
    assert float(tower._loss(parts, mean, nothing)) == 0.0


def test_the_position_loss_asks_every_patch_for_its_row_and_column():
    """Against plain loops, on 3 x 3 patches."""
    rng = np.random.default_rng(0)
    row, column = (rng.normal(size=(2, 9, 3)).astype(np.float32) for _ in "rc")
    losses = [
        softmax_loss(row[image, patch], patch // 3) + softmax_loss(column[image, patch], patch % 3)
        for image in range(2)
        for patch in range(9)
    ]
    np.testing.assert_allclose(
        tower._position_loss(jnp.asarray(row), jnp.asarray(column), 3), np.mean(losses), rtol=1e-5
    )


def test_unit_scale_changes_hidden_states_by_one_factor():
    # A tiny epsilon, so that norms divide the factor out exactly; random parameters, scales included.
    config = dataclasses.replace(VISION, norm_eps=1e-12)
    pixels = np.random.default_rng(0).normal(size=(3, 24, 24, 3)).astype(np.float32)
    model = VisionTower(config)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), pixels)["params"])
    params = random_like(nn.meta.unbox(shapes))
    scaled = tower.unit_scale(config, params, pixels)
    before, after = (np.asarray(model.apply({"params": p}, pixels)) for p in (params, scaled))
    factor = float(after.std() / before.std())
    assert abs(factor - 1) > 0.05
    np.testing.assert_allclose(after, before * factor, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(jnp.std(split_features(jnp.asarray(after), config).single), 1.0, rtol=1e-5)


def test_training_lowers_the_loss_and_scores_every_label(pools):
    seen = []
    params, record = tower.train_tower(
        VISION,
        [pools["train"]],
        [pools["test"]],
        steps=12,
        batch_size=16,
        learning_rate=3e-3,
        log_every=4,
        on_log=lambda step, loss: seen.append([step, loss]),
    )
    assert record["loss"] == seen and [step for step, _ in seen] == [4, 8, 12]
    assert seen[-1][1] < seen[0][1] - 0.1
    # Fewer images than one batch of the scoring; mosaics hold no digits.
    assert record["accuracy"].keys() == {"shape", "color"}
    assert all(0 < share <= 1 for share in record["accuracy"].values())
    states = tower.feature_fn(VISION, params)(pools["train"].images[:20])
    assert states.shape == (20, 16, 2, 16)
    np.testing.assert_allclose(jnp.std(split_features(states, VISION).single), 1.0, rtol=1e-4)


def test_training_on_a_test_split_is_refused(pools):
    with pytest.raises(UserError, match="test split"):
        tower.train_tower(
            VISION,
            [pools["train"], pools["test"]],
            [],
            steps=1,
            batch_size=2,
            learning_rate=1e-3,
            log_every=1,
            on_log=print,
        )
