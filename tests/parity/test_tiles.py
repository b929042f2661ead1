"""Any-resolution images against transformers' LLaVA-NeXT: grids, pixels and the order of tokens."""

import dataclasses
import types
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from quecc_jax.config import ModelConfig, PixelConfig, QueccConfig, VisionConfig
from quecc_jax.convert.plan import Source, plan_import
from quecc_jax.convert.rules import to_tree
from quecc_jax.data.batch import NEWLINE
from quecc_jax.data.images import load_pixels, normalise
from quecc_jax.data.tiles import arrange, best_grid
from quecc_jax.models.vlm import VLM
from tests.parity.compare import randomise
from tests.parity.rows import row_of_tiles
from tests.parity.test_names import models

GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
SIZES = st.integers(20, 2000)


@settings(deadline=None, max_examples=500)
@given(SIZES, SIZES)
def test_the_grid_is_the_same(width, height):
    theirs = select_best_resolution((height, width), [(r * 336, c * 336) for r, c in GRIDS])
    rows, columns = best_grid(width, height, GRIDS, 336)
    assert (rows * 336, columns * 336) == theirs


@settings(deadline=None, max_examples=300)
@given(SIZES, SIZES, st.sampled_from([1, 2, 3, 6, 12, 24]))
def test_tokens_stand_in_the_same_order(width, height, side):
    """Each token is its index, the newline is -1."""
    compressor = QueccConfig(kernel=24 // side, stride=24 // side)
    model = ModelConfig(vision=VisionConfig(tiles=GRIDS), compressor=compressor)
    ours = arrange(width, height, model)
    vision = types.SimpleNamespace(image_size=336, patch_size=336 // side)
    pinpoints = [[r * 336, c * 336] for r, c in GRIDS]
    config = types.SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    theirs: Any = types.SimpleNamespace(config=config)
    index = torch.arange(ours.crops * side**2, dtype=torch.float64).reshape(ours.crops, -1, 1)
    packed, _ = LlavaNextModel.pack_image_features(
        theirs, [index], [(height, width)], "default", torch.full((1,), -1.0, dtype=torch.float64)
    )
    slots = packed[0][:, 0].numpy().astype(int)
    assume(len(slots) > side**2 and slots[side**2] >= 0)  # They drop images thinner than a token.
    np.testing.assert_array_equal(np.where(ours.slots == NEWLINE, -1, ours.slots), slots)


@pytest.mark.parametrize("width, height", [(40, 19), (17, 60), (25, 25)])
def test_a_whole_model_gives_the_same_logits(width, height):
    theirs = models()["llava_next"].float().eval()
    state = randomise(theirs)
    plan = plan_import(Source(theirs.config.to_dict(), {k: tuple(v.shape) for k, v in state.items()}))
    model = dataclasses.replace(plan.config.model, dtype="float32", remat="none")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    pixels, stands = load_pixels(image, model.vision), arrange(width, height, model)
    batch = row_of_tiles(1, stands, pixels)
    params, vlm = to_tree(plan.rules, state), VLM(model)
    hidden = jax.jit(lambda b: vlm.apply({"params": params}, b))(batch)
    ours: Any = vlm.apply({"params": params}, hidden, method=VLM.logits)
    given = np.where(batch.slots >= 0, 39, batch.tokens)
    out = theirs(
        input_ids=torch.from_numpy(given).long(),
        image_sizes=torch.tensor([[height, width]]),
        pixel_values=torch.from_numpy(normalise(pixels, PixelConfig())).permute(0, 3, 1, 2)[None],
    )
    wanted = out.logits.detach().numpy()
    np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("width, height", [(300, 200), (150, 460), (97, 101), (700, 90)])
def test_pixels_are_the_same(width, height):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    side = {"height": 56, "width": 56}
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 56}, crop_size=side, image_grid_pinpoints=[[r * 56, c * 56] for r, c in GRIDS]
    )
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    ours = normalise(load_pixels(image, VisionConfig(image_size=56, tiles=GRIDS)), PixelConfig())
    np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1)[: len(ours)], atol=1e-5)
