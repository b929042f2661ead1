"""S2's features against torch's interpolation, with transformers' tower on each tile."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

from quecc_jax.convert.formats.towers.clip import vision_config, vision_rules
from quecc_jax.convert.rules import to_tree
from quecc_jax.models.towers.vit import VisionTower
from tests.parity.compare import randomise


@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 3)])
def test_features_agree(scales):
    hf = transformers.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=20,
        patch_size=5,
    )
    theirs = transformers.CLIPVisionModel(hf).float().eval()
    state = randomise(theirs)
    config = dataclasses.replace(vision_config(hf.to_dict()), scales=scales, select_layer=-1, levels=(2,))
    params = to_tree(vision_rules(config, ""), state)["vision"]
    side = config.input_size
    pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    whole, wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2), []
    for scale in scales:
        size = 20 * scale
        scaled = F.interpolate(whole, size=(size, size), mode="bicubic") if size != side else whole
        rows = []
        for row in range(scale):
            cells = [scaled[:, :, 20 * row : 20 * row + 20, 20 * k : 20 * k + 20] for k in range(scale)]
            maps = [theirs(cell, output_hidden_states=True).hidden_states[2][:, 1:] for cell in cells]
            rows.append(torch.cat([m.transpose(1, 2).reshape(2, 24, 4, 4) for m in maps], dim=3))
        joined = torch.cat(rows, dim=2)
        wanted.append(F.interpolate(joined, size=(4, 4), mode="area").flatten(2).transpose(1, 2))
    ours = jax.jit(lambda x: VisionTower(config).apply({"params": params}, x))(pixels)[:, :, 0]
    np.testing.assert_allclose(ours, torch.cat(wanted, dim=-1).detach().numpy(), rtol=1e-4, atol=1e-4)
