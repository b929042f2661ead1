"""CLS kept: one more visual token in front, before whatever a compressor makes."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from quecc_jax import flops
from quecc_jax.config import ModelConfig, PixelConfig
from quecc_jax.config.validation import validate
from quecc_jax.data.elastic import Slots
from quecc_jax.data.images import normalise
from quecc_jax.errors import UserError
from quecc_jax.models.vlm import VLM
from tests.compressors import fitting
from tests.models.reference import affine, gelu, tower
from tests.tiny import MODEL, RUN, random_batch, random_params, run

M = MODEL.decoder.width


def models(name: str, **settings: Any) -> tuple[ModelConfig, ModelConfig]:
    """(with CLS, without)"""
    compressor = fitting(name, kernel=2, stride=2, heads=4, fusion_layers=1, **settings)
    vision = dataclasses.replace(MODEL.vision, keep_cls=True)
    plain = dataclasses.replace(MODEL, compressor=compressor)
    return dataclasses.replace(plain, vision=vision), plain


@pytest.mark.parametrize("name", ["quecc", "m3", "none", "prumerge", "llava_mini"])
def test_cls_passes_the_projector_and_stands_in_front(name):
    kept, plain = models(name)
    config = run(
        model={"compressor": kept.compressor, "vision": kept.vision}, data={"max_length": 48}, batch_size=2
    )
    batch, params = random_batch(config, images=[1, 2])._replace(ids=None), random_params(config)
    assert kept.visual_tokens == plain.visual_tokens + 1

    def both(batch: Any) -> Any:
        def one(model: VLM, batch: Any) -> Any:
            return model.visual_tokens(batch), model.splice(batch)

        given: Any = {"params": params}
        made: Any = VLM(kept).apply(given, batch, method=one)
        return *made, VLM(plain).apply(given, batch, method=VLM.visual_tokens)

    ours, inputs, bare = jax.device_get(jax.jit(both)(batch))
    np.testing.assert_allclose(ours[:, :, 1:], bare, rtol=1e-4, atol=1e-5)
    pixels = np.asarray(normalise(batch.pixels[1, 1], PixelConfig()))
    cls = tower(params["vision"], plain.vision, pixels, cls=True)[plain.vision.select_index][:1]
    p = params["projector"]
    wanted = affine(p["fc2"], gelu(affine(p["fc1"], cls, M)), M)
    np.testing.assert_allclose(ours[1, 1, 0], wanted[0], rtol=1e-3, atol=1e-3)
    for row in range(2):
        here = batch.slots[row] >= 0
        np.testing.assert_allclose(
            inputs[row][here], ours[row].reshape(-1, M)[batch.slots[row][here]], rtol=1e-5
        )


def test_everything_that_counts_tokens_counts_it():
    kept, plain = models("quecc")
    assert (kept.visual_tokens, kept.num_output_tokens) == (5, 4)
    # The second image of a row, whose conversation has one image, laid out as [text, five slots].
    codes, _ = Slots(kept)(np.array([7, -1, -2, -3, -4, -5]), np.zeros(6, bool), 1, 0)
    assert codes.tolist() == [7, -6, -7, -8, -9, -10]
    assert flops.projector_flops(kept) - flops.projector_flops(plain) == 2 * flops.projector_params(plain)
    parts, fewer = (flops.answer_flops(m, 4, 10, 3) for m in (kept, plain))
    assert parts["prefill"] == flops.decoder_flops(MODEL.decoder, 15, 15, 1) > fewer["prefill"]
    assert flops.compressor_cost(kept) == flops.compressor_cost(plain)


@pytest.mark.parametrize(
    "vision, compressor, message",
    [
        ({"scales": (1, 2)}, {}, r"vision.keep_cls keeps one CLS, but vision.scales \(1, 2\) have several"),
        ({"tiles": ((1, 2),)}, {}, "vision.keep_cls has no place on the one map that quecc makes"),
        ({}, {"elastic": (1, 4)}, r"vision.keep_cls stands in front of one V, but compressor.elastic has"),
    ],
)
def test_where_it_makes_no_sense_is_said(vision, compressor, message):
    kept, _ = models("quecc", **compressor)
    kept = dataclasses.replace(kept, vision=dataclasses.replace(kept.vision, **vision))
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(RUN, model=kept))
