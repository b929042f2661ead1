"""The pixel pipeline against transformers' CLIP processor and against PIL."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip import CLIPImageProcessorPil

from quecc_jax.config import VisionConfig
from quecc_jax.data.easyvqa import picture_paths
from quecc_jax.data.images import CLIP_MEAN, CLIP_STD, fit, load_pixels, normalise
from quecc_jax.errors import UserError

VISION = VisionConfig(image_size=56, patch_size=14)


def scene(width, height, seed=0):
    """A smooth picture of the given size with every channel different, made from a real one."""
    real = Image.open(picture_paths("train")[seed]).convert("RGB")
    return real.resize((width, height), Image.Resampling.BICUBIC)


def clip(image, size):
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return np.asarray(processor(image)["pixel_values"][0]).transpose(1, 2, 0)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(20, 150), height=st.integers(20, 150), seed=st.integers(0, 9))
def test_square_is_the_clip_processor(width, height, seed):
    image = scene(width, height, seed)
    ours = load_pixels(image, VISION, "square")
    assert ours.shape == (56, 56, 3) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, clip(image, 56), atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(width=st.integers(20, 150), height=st.integers(20, 150))
def test_pad_is_the_clip_processor_after_padding(width, height):
    image = scene(width, height)
    side = max(width, height)
    padded = np.empty((side, side, 3), np.uint8)
    padded[:] = [122, 116, 104]  # floor(255 * CLIP mean)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top:top + height, left:left + width] = np.asarray(image)
    wanted = clip(Image.fromarray(padded), 56)
    np.testing.assert_allclose(load_pixels(image, VISION, "pad"), wanted, atol=2e-6)


def test_right_size_is_left_alone():
    image = scene(56, 56)
    assert np.array_equal(np.asarray(fit(image, 56, "pad")), np.asarray(image))


def test_normalise_is_the_published_formula_and_writes_in_place():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    out = np.empty((4, 5, 3), np.float32)
    expected = (pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    assert normalise(pixels, out) is out
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_exif_orientation_is_applied(tmp_path):
    image = scene(60, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = load_pixels(image.transpose(Image.Transpose.ROTATE_270), VISION)
    assert np.array_equal(load_pixels(tmp_path / "turned.png", VISION), upright)
    assert not np.array_equal(load_pixels(image, VISION), upright)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_mode_becomes_rgb(mode, tmp_path):
    scene(60, 40).convert(mode).save(tmp_path / "picture.tiff")
    assert load_pixels(tmp_path / "picture.tiff", VISION).shape == (56, 56, 3)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    scene(60, 60).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    for name in ("text.png", "half.png", "none.png"):
        with pytest.raises(UserError, match=name):
            load_pixels(tmp_path / name, VISION)


def test_size_follows_the_config():
    assert load_pixels(scene(64, 48), dataclasses.replace(VISION, image_size=28)).shape == (28, 28, 3)
