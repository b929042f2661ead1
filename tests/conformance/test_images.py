"""Pixels of images' files with data.image_decoding "original", against what LLaVA's code reads.

Expected values in llava_pixels.json: what `Image.open(file).convert("RGB")`, the line of LLaVA's training and
evaluation, gives under a Pillow of LLaVA-1.5's time. JPEG decoders differ by rounding, so of JPEG files only
the size is kept. Large notes in files: LlamaFactory #5622 and Pillow #8363 report images that were refused.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quecc_jax.data.images import image_size, open_image
from tests.data.notes import NOTED, image

TABLE = json.loads((Path(__file__).parent / "llava_pixels.json").read_text())


@pytest.mark.filterwarnings("ignore:Palette images")
@pytest.mark.parametrize("name", TABLE["cases"])
def test_original_pixels(conforms, name):
    case = TABLE["cases"][name]
    file = base64.b64decode(case["file"])
    ours = open_image(io.BytesIO(file), "original")
    conforms("pixels", f"{name}, size", tuple(case["size"]), ours.size)
    conforms("pixels", f"{name}, size alone", tuple(case["size"]), image_size(io.BytesIO(file), "original"))
    if case["pixels"] is not None:
        conforms("pixels", name, case["pixels"], ours.tobytes().hex())


@pytest.mark.parametrize("decoding", ["upright", "original"])
@pytest.mark.parametrize("name", NOTED)
def test_large_notes(conforms, name, decoding):
    """The pixels are those of the file without its note."""
    ours = open_image(io.BytesIO(NOTED[name]()), decoding)
    wanted = image()
    if name.endswith("turned") and decoding == "upright":
        wanted = wanted.transpose(Image.Transpose.ROTATE_270)
    conforms("picture", f"{name}, {decoding}", wanted.size, ours.size)
    difference = np.abs(np.asarray(ours).astype(int) - np.asarray(wanted)).max()
    conforms("picture", f"{name}, {decoding}: pixels", True, bool(difference <= (0 if "png" in name else 40)))
