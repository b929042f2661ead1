"""The tower against transformers' CLIPVisionModel with the same random weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from quecc_jax.config import VisionConfig
from quecc_jax.convert.clip import vision_config, vision_rules
from quecc_jax.convert.rules import from_tree, to_tree
from quecc_jax.models.clip import ClipTower
from tests.golden_check import TOLERANCE
from tests.parity.compare import errors, gradients, randomise

DEPTH = 3


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_all_hidden_states_and_gradients_agree(activation):
    hf = transformers.CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=DEPTH, num_attention_heads=3,
        image_size=20, patch_size=5, hidden_act=activation, layer_norm_eps=1e-3,
    )  # fmt: skip
    theirs = transformers.CLIPVisionModel(hf).float().eval()
    state = randomise(theirs)
    described: VisionConfig = vision_config(hf.to_dict())
    config = VisionConfig(**{**vars(described), "levels": tuple(range(DEPTH + 1)), "select_layer": -1})
    rules = vision_rules(config, prefix="")
    params = to_tree(rules, state)
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(2, 20, 20, 3)).astype(np.float32)
    cotangent = rng.normal(size=(2, 16, DEPTH + 1, 24)).astype(np.float32)

    @jax.jit
    def run(params: Any) -> Any:
        def total(params: Any) -> Any:
            states: Any = ClipTower(config).apply({"params": params["vision"]}, pixels)
            return jnp.sum(states * cotangent), states

        return jax.grad(total, has_aux=True)(params)

    grads, states = run(params)
    out = theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True)
    stacked = torch.stack([h[:, 1:] for h in out.hidden_states], dim=2)
    (stacked * torch.from_numpy(cotangent)).sum().backward()

    found = errors({"states": states}, {"states": stacked.detach().numpy()}, False)
    wanted = gradients(theirs)
    ours = from_tree(rules, jax.device_get(grads))
    unused = {name for name in ours if "post_layernorm" in name}
    assert len(unused) == 2 and not any(ours.pop(name).any() for name in unused)
    # Softmax ignores what a key's bias adds to all logits alike: its gradient is round-off.
    largest = max(float(np.abs(gradient).max()) for gradient in wanted.values())
    silent = [name for name in wanted if "k_proj.bias" in name]
    for name in silent:
        assert max(np.abs(ours.pop(name)).max(), np.abs(wanted.pop(name)).max()) < 1e-6 * largest
    found |= errors(ours, wanted, True)
    assert len(silent) == DEPTH and len(found) > 50 and max(found.values()) < TOLERANCE, found
