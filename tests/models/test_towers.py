"""SigLIP's and DINOv2's towers, values of the one that CLIP is too, against the same mathematics in NumPy; and what is
refused of them."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quecc_jax.config import ModelConfig, NoneConfig, PixelConfig, RunConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.config.presets import TOWERS, feature_levels, tower
from quecc_jax.config.validation import validate
from quecc_jax.errors import UserError
from quecc_jax.fingerprint import tower_fingerprint
from quecc_jax.models.bicubic import bicubic_weights
from quecc_jax.models.towers.vit import VisionTower
from tests.models.reference import tower as reference
from tests.models.test_clip import CONFIG, tower_params
from tests.tiny import RUN

SIGLIP: dict[str, Any] = {"cls": False, "patch_bias": True, "pre_norm": False, "activation": "gelu_tanh"}
DINO: dict[str, Any] = {"patch_bias": True, "pre_norm": False, "layer_scale": True, "activation": "gelu"}
FAMILIES: dict[str, dict[str, Any]] = {
    "siglip": SIGLIP,
    "a border that no patch sees": SIGLIP | {"image_size": 18, "drop_border": True},
    "dinov2": DINO,
    "dinov2 with registers": DINO | {"registers": 3},
    "dinov2 giant": DINO | {"activation": "swiglu"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tower_equals_its_mathematics(name):
    config = dataclasses.replace(CONFIG, **FAMILIES[name])
    params = tower_params(config)
    side = config.image_size
    pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    ours = np.asarray(jax.jit(VisionTower(config).apply)({"params": params}, pixels))
    assert ours.shape == (2, 16, 3, 16)
    for row, image in enumerate(pixels):
        expected = reference(params, config, image)
        for place, index in enumerate((0, 2, 3)):
            np.testing.assert_allclose(ours[row, :, place], expected[index], rtol=1e-3, atol=1e-4)


def test_cls_stands_in_front_of_the_patches_and_registers_nowhere():
    config = dataclasses.replace(CONFIG, **DINO, registers=3, keep_cls=True)
    params = tower_params(config)
    pixels = np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)
    states: Any = VisionTower(config).apply({"params": params}, pixels)
    expected = reference(params, config, pixels[0], cls=True)[3]
    np.testing.assert_allclose(
        states[0, :, 2], np.delete(expected, slice(1, 4), axis=0), rtol=1e-3, atol=1e-4
    )


@given(st.integers(2, 40), st.integers(1, 40), st.booleans())
def test_interpolated_positions_keep_what_is_the_same_everywhere(size, target, antialias):
    weights = bicubic_weights(size, target, antialias)
    assert weights.shape == (target, size)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-12)
    # Read from the other end, they are the same.
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-12)


@pytest.mark.parametrize(
    "depth, levels", [(24, (12, 16, 22, 23)), (27, (13, 18, 25, 26)), (12, (6, 8, 10, 11))]
)
def test_levels_follow_from_the_depth(depth, levels):
    assert feature_levels(depth) == levels


@given(st.integers(1, 60))
def test_levels_are_states_of_the_tower_in_order(depth):
    levels = feature_levels(depth)
    assert levels == (-2,) if depth < 8 else levels == tuple(sorted({*levels})) and levels[-1] == depth - 1


@pytest.mark.parametrize("name", TOWERS)
def test_presets_are_valid(name):
    vision = tower(name)
    validate(RunConfig(model=ModelConfig(vision=vision, compressor=NoneConfig())))
    assert vision.levels == feature_levels(vision.depth) and vision.select_layer == -2


def test_an_unknown_tower_is_told_of_its_nearest():
    with pytest.raises(UserError, match=r"'siglip2-so400m-14' is not known; did you mean siglip2-so400m-1"):
        tower("siglip2-so400m-14")


@pytest.mark.parametrize(
    "changes, compressor, message",
    [
        (
            {"cls": False},
            "prumerge",
            r"compressor prumerge reads the attention of CLS, which .* vision\.cls False",
        ),
        ({"cls": False, "keep_cls": True}, "none", r"vision\.keep_cls keeps CLS, which .* vision\.cls False"),
        ({"registers": 2}, "prumerge", r"compressor prumerge .* vision\.registers 2 have a share"),
        ({"image_size": 18}, "none", r"vision\.image_size 18 is not a multiple of patch_size 4"),
        ({"position_grid": 4}, "none", r"vision\.position_grid 4 is the image's own grid"),
        ({"antialias_positions": True}, "none", r"vision\.antialias_positions .* vision\.position_grid is 0"),
        ({"max_squares": 9}, "none", r"vision\.max_squares 9 shrinks .* vision\.tiles are none"),
        (
            {"max_squares": 9, "tiles": ((2, 2),)},
            "mqt",
            r"vision\.max_squares 9 .* mqt makes tokens that lie on none",
        ),
        (
            {"max_squares": 9, "tiles": ((2, 2),)},
            "llava_mini",
            r"vision\.max_squares 9 .* llava_mini fuses them with the text",
        ),
        ({"pixels": PixelConfig(mean=(0.5,))}, "none", r"vision\.pixels\.mean \(0\.5,\) .* three numbers"),
        (
            {"pixels": PixelConfig(resized=12)},
            "none",
            r"vision\.pixels\.resized 12 is less than the 16 pixels",
        ),
        (
            {"pixels": PixelConfig(resized=20), "scales": (1, 2)},
            "none",
            r"resized 20 is of one square, .*\(1, 2\)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, compressor, message):
    vision = dataclasses.replace(RUN.model.vision, **changes)
    model = dataclasses.replace(
        RUN.model, vision=vision, compressor=exchanged(RUN.model.compressor, name=compressor)
    )
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(RUN, model=model))


def test_stored_features_are_of_one_way_to_make_pixels():
    """And of none that would have been another's before there were several."""
    params, data = {"a": np.zeros(2)}, RUN.data
    ways = [
        PixelConfig(),
        *(PixelConfig(**one) for one in ({"mean": (0.5,) * 3}, {"fit": "stretch"}, {"resized": 20})),
    ]
    ways += [PixelConfig(resample="bilinear"), PixelConfig(std=(0.5,) * 3)]
    found = [
        tower_fingerprint(params, dataclasses.replace(RUN.model.vision, pixels=how), data) for how in ways
    ]
    assert len({*found}) == len(ways)
