"""Towers of other runs: read where they compute what this run's settings say, refused where they do not."""

import dataclasses

import jax
import numpy as np
import pytest

from quecc_jax.config import MeshConfig, NoneConfig, PixelConfig, RunConfig, VisionConfig
from quecc_jax.data.batch import batch_spec
from quecc_jax.errors import UserError
from quecc_jax.models.towers.vit import VisionTower
from quecc_jax.sharding import make_mesh
from quecc_jax.train.checkpoint import Tree, save_params
from quecc_jax.train.initial import borrowed, initial_state, named_tower
from quecc_jax.train.step import abstract_params, build_trainer
from tests.tiny import random_params, run

TOWER = VisionConfig(
    image_size=24, patch_size=6, width=8, depth=3, heads=2, mlp_width=16, levels=(1, 2), post_norm=True
)
SIGLIP = PixelConfig((0.5,) * 3, (0.5,) * 3, "bilinear", "stretch")


def with_vision(vision: VisionConfig) -> RunConfig:
    config = run()
    model = dataclasses.replace(
        config.model, vision=vision, compressor=NoneConfig(), dtype="float32", projector="linear"
    )
    return dataclasses.replace(config, model=model)


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> tuple[RunConfig, Tree]:
    """A run that holds a tower alone, and the tower's parameters."""
    config = with_vision(TOWER)
    config = dataclasses.replace(config, out=str(tmp_path_factory.mktemp("runs") / "tower"))
    params = {"vision": random_params(config, seed=3)["vision"]}
    save_params(config, params)
    return config, params


def read(held: tuple[RunConfig, Tree], vision: VisionConfig) -> Tree:
    config = with_vision(vision)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    abstract = abstract_params(config, mesh, batch_spec(config.model, config.data, 1))
    return borrowed("tower_from", held[0].out, config.model, {"vision": abstract["vision"]})


@pytest.mark.parametrize(
    "choice",
    [
        {"keep_attention": True},
        {"keep_cls": True},
        {"scales": (1, 2)},
        {"tiles": ((1, 2), (2, 2))},
        {"select_layer": -3},
        {"levels": (0, 3)},
        {"post_norm": False},
        {"pixels": PixelConfig(resized=32)},
    ],
    ids=str,
)
def test_what_the_reader_makes_of_a_tower_is_its_own_choice(held, choice):
    params = read(held, dataclasses.replace(TOWER, **choice))["vision"]
    whole = dict(held[1]["vision"])
    if choice == {"post_norm": False}:
        del whole["post_norm"]
    jax.tree.map(np.testing.assert_array_equal, params, whole)


def test_no_feature_passes_through_the_norm_that_may_be_absent(held):
    whole = held[1]["vision"]
    without = {name: leaf for name, leaf in whole.items() if name != "post_norm"}
    pixels = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    there = VisionTower(TOWER).apply({"params": whole}, pixels)
    here = VisionTower(dataclasses.replace(TOWER, post_norm=False)).apply({"params": without}, pixels)
    np.testing.assert_array_equal(there, here)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": 4}, "k/bias has shape"),
        ({"norm_eps": 1e-6}, "vision.norm_eps 1e-05, and this run 1e-06"),
        ({"activation": "gelu"}, "vision.activation quick_gelu, and this run gelu"),
        ({"pixels": SIGLIP}, r"vision.pixels.fit crop, and this run stretch"),
        ({"pixels": dataclasses.replace(PixelConfig(), mean=SIGLIP.mean)}, r"vision.pixels.mean \(0.48"),
        ({"pixels": dataclasses.replace(PixelConfig(), std=SIGLIP.std)}, r"vision.pixels.std \(0.26"),
        ({"pixels": dataclasses.replace(PixelConfig(), resample="bilinear")}, "pixels.resample bicubic"),
        ({"width": 16}, "has shape"),
        ({"depth": 4}, "has shape"),
        ({"mlp_width": 32}, "has shape"),
        ({"image_size": 36}, "position_embedding has shape"),
        ({"patch_size": 12}, "has shape"),
        ({"patch_size": 4, "image_size": 16}, "patch_embedding/kernel has shape"),
    ],
    ids=str,
)
def test_a_tower_that_computes_otherwise_is_refused(held, change, message):
    with pytest.raises(UserError, match=message):
        read(held, dataclasses.replace(TOWER, **change))


def test_a_norm_that_an_export_would_need_is_not_made_up(held, tmp_path):
    config = with_vision(dataclasses.replace(TOWER, post_norm=False))
    config = dataclasses.replace(config, out=str(tmp_path / "tower"))
    params = {name: leaf for name, leaf in held[1]["vision"].items() if name != "post_norm"}
    save_params(config, {"vision": params})
    with pytest.raises(UserError, match="vision/post_norm/bias is missing"):
        read((config, {}), TOWER)


def test_features_of_another_tower_than_the_one_that_was_trained_are_refused(held, tmp_path):
    config = with_vision(TOWER)
    params = random_params(config, seed=3)
    for name, seed in (("same", 3), ("trained", 4)):
        saved = params | {"vision": random_params(config, seed=seed)["vision"]}
        save_params(dataclasses.replace(config, out=str(tmp_path / name)), saved)
    data = dataclasses.replace(config.data, cached_features=True)
    config = dataclasses.replace(config, data=data, tower_from=held[0].out)
    same = dataclasses.replace(config, init_from=str(tmp_path / "same"))
    assert named_tower(same) == named_tower(config)
    trained = dataclasses.replace(config, init_from=str(tmp_path / "trained"))
    with pytest.raises(UserError, match=r"trained has a tower of its own.*leave tower_from out"):
        named_tower(trained)
    assert named_tower(dataclasses.replace(trained, tower_from="")) not in (None, named_tower(config))


def test_a_tower_that_is_not_read_is_told(held, tmp_path):
    config = dataclasses.replace(with_vision(TOWER), out=str(tmp_path / "run"))
    save_params(config, random_params(config, seed=4))
    config = dataclasses.replace(config, init_from=config.out, tower_from=held[0].out)
    said: list[str] = []
    initial_state(
        config, build_trainer(config, make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])), said.append
    )
    assert any("is not read for images: init_from" in line for line in said)


def test_what_is_neither_found_nor_trained_is_told(held, tmp_path):
    config = dataclasses.replace(with_vision(TOWER), init_from=held[0].out)
    train = dataclasses.replace(config.train, parts=("decoder",))
    said: list[str] = []
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    config = dataclasses.replace(config, train=train)
    initial_state(config, build_trainer(config, mesh), said.append)
    assert said[-1] == "WARNING: this run trains none of these, which stay random: projector"
