"""Several scales of one tower: tiles, their features put together, and the model around them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from quecc_jax import flops
from quecc_jax.config import VisionConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.config.validation import validate
from quecc_jax.convert.formats.llava import original_model
from quecc_jax.data.batch import batch_spec
from quecc_jax.errors import UserError
from quecc_jax.models.bicubic import bicubic_weights
from quecc_jax.models.towers.vit import VisionTower
from quecc_jax.models.vlm import VLM
from tests import tiny
from tests.convert.names import load
from tests.models.test_clip import tower_params

SCALES = (1, 2, 3)
CONFIG = dataclasses.replace(tiny.MODEL.vision, scales=SCALES)


def test_features_are_those_of_all_tiles_averaged_onto_one_grid():
    """Against a loop over scales and tiles, each seen by a tower of one scale."""
    once = dataclasses.replace(CONFIG, scales=(1,))
    params, side, grid = tower_params(once), CONFIG.image_size, CONFIG.grid
    pixels = np.random.default_rng(0).normal(size=(2, 3 * side, 3 * side, 3)).astype(np.float32)
    tower = jax.jit(lambda tile: VisionTower(once).apply({"params": params}, tile))
    wanted = []
    for scale in SCALES:
        resize = bicubic_weights(3 * side, scale * side)
        scaled = np.einsum("yh,bhwc,xw->byxc", resize, pixels, resize) if scale < 3 else pixels
        whole = np.zeros((2, scale * grid, scale * grid, 3, 16), np.float32)
        for row, column in np.ndindex(scale, scale):
            tile = scaled[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            whole[:, row * grid : (row + 1) * grid, column * grid : (column + 1) * grid] = np.asarray(
                tower(tile)
            ).reshape(2, grid, grid, 3, 16)
        pooled = np.zeros((2, grid, grid, 3, 16), np.float32)
        for row, column in np.ndindex(grid, grid):
            square = whole[:, row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
            pooled[:, row, column] = square.mean(axis=(1, 2))
        wanted.append(pooled.reshape(2, grid * grid, 3, 16))
    ours = jax.jit(lambda x: VisionTower(CONFIG).apply({"params": params}, x))(pixels)
    assert ours.shape == (2, 16, 3, 48) and CONFIG.feature_width == 48
    np.testing.assert_allclose(ours, np.concatenate(wanted, axis=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size, target", [(12, 4), (24, 16), (5, 9)])
def test_bicubic_weights_sum_to_one_and_keep_straight_lines(size, target):
    matrix = bicubic_weights(size, target)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    inside = slice(2, -2) if target > 4 else slice(1, -1)
    centres = (np.arange(target) + 0.5) * size / target - 0.5
    np.testing.assert_allclose((matrix @ np.arange(size))[inside], centres[inside], atol=0.1)


@pytest.mark.parametrize("name", ["quecc", "quecc_plus", "tokenpacker", "none"])
def test_a_model_reads_all_scales(name):
    """The compressor has their width, the questions' gradient passes, and images come at the largest."""
    compressor = exchanged(tiny.MODEL.compressor, name=name)
    config = tiny.run({"vision": CONFIG, "compressor": compressor}, {"max_length": 48})
    validate(config)
    spec = batch_spec(config.model, config.data, 1)
    assert spec.pixels.shape == (1, 2, 48, 48, 3)
    params = tiny.random_params(config)
    assert params["projector"]["fc1"]["kernel"].shape == (48, 32)
    batch = tiny.random_batch(config, images=[1, 2])._replace(ids=None)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 2, 48, 48, 3), dtype=np.uint8)
    model = VLM(config.model)

    @jax.jit
    def visual(pixels):
        return model.apply({"params": params}, batch._replace(pixels=pixels), method=VLM.visual_tokens)

    tokens = visual(pixels)
    # One pixel of 48 x 48 is lost at the smaller scales or blurred, never at the largest.
    other = pixels.copy()
    other[0, 0, 47, 47] ^= 255
    assert tokens.shape == (8, 2, config.model.visual_tokens, 32)
    assert jnp.abs(visual(other)[0, 0] - tokens[0, 0]).max() > 1e-6


def test_flops_are_those_of_all_tiles():
    whole, once = (dataclasses.replace(tiny.MODEL.vision, scales=scales) for scales in (SCALES, (1,)))
    assert flops.tower_flops(whole) == 14 * flops.tower_flops(once)
    model = dataclasses.replace(tiny.MODEL, vision=whole)
    assert flops.projector_params(model) == 48 * 32 + 32 * 32


def test_the_originals_setting_is_understood():
    hf = load("llava_tiny")["config"] | {
        "s2": True,
        "s2_scales": "48,24",
        "mm_hidden_size": None,
        "mm_vision_token_compression_type": None,
    }
    tower = VisionConfig(image_size=24, patch_size=4)
    assert original_model(hf, tower).vision.scales == (1, 2)
    with pytest.raises(UserError, match=r"s2_scales '48,24' .* not multiples"):
        original_model(hf, dataclasses.replace(tower, image_size=48))
