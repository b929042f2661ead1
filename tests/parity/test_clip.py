"""CLIP's two towers against those of transformers with the same random weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from quecc_jax.config import VisionConfig
from quecc_jax.convert.formats.towers.clip import vision_config, vision_rules
from quecc_jax.convert.formats.towers.clip_text import TEXT_ANCHOR, hf_text_config, text_config, text_rules
from quecc_jax.convert.rules import from_tree, to_tree
from quecc_jax.models.towers.clip_text import ClipText
from quecc_jax.models.towers.vit import VisionTower, split_features
from tests.golden_check import TOLERANCE
from tests.parity.compare import errors, gradients, randomise
from tests.parity.rows import gradients_and_states

DEPTH = 3


@pytest.mark.parametrize("projected, end", [(True, 49), (True, 2), (False, 49)])
def test_the_text_tower_agrees(projected, end):
    """As transformers pool: at the first end token, or, under configs of old, at the largest id."""
    hf = transformers.CLIPTextConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        projection_dim=20,
        num_hidden_layers=DEPTH,
        num_attention_heads=3,
        max_position_embeddings=10,
        layer_norm_eps=1e-3,
        eos_token_id=end,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    theirs = kind(hf).float().eval()
    state = randomise(theirs)
    config = text_config(hf.to_dict(), projected)
    assert config.activation == "quick_gelu" and (config.projection, config.positions) == (20 * projected, 10)
    prefix = next(name for name in state if name.endswith(TEXT_ANCHOR)).removesuffix(TEXT_ANCHOR)
    rules = text_rules(config, prefix)
    params = to_tree(rules, state)["text"]
    rng = np.random.default_rng(1)
    ids, lengths = rng.integers(1, 48, (4, 10)), np.array([10, 7, 3, 2])
    for row, length in zip(ids, lengths, strict=True):
        row[0], row[length - 1 :] = 48, 49
    out = theirs(torch.from_numpy(ids))
    wanted = (out.text_embeds if projected else out.pooler_output).detach().numpy()
    run = jax.jit(lambda *a: ClipText(config, jnp.dtype("float32")).apply({"params": params}, *a))
    index = np.broadcast_to(np.arange(10), (4, 10))
    segments = (index < lengths[:, None]).astype(np.int32)
    found = errors({"text": run(ids, index, segments, lengths[:, None] - 1)[:, 0]}, {"text": wanted}, False)
    assert max(found.values()) < 1e-5, found
    described = text_config(hf_text_config(config), projected)
    assert described == config


def test_the_attention_that_prumerge_reads_agrees():
    """Queries and keys of the last layer, which reads the select layer's states, and their softmax."""
    hf = transformers.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=DEPTH,
        num_attention_heads=3,
        image_size=20,
        patch_size=5,
        layer_norm_eps=1e-3,
    )
    theirs = transformers.CLIPVisionModel(hf).float().eval()
    state = randomise(theirs)
    described: VisionConfig = vision_config(hf.to_dict())
    config = VisionConfig(**{**vars(described), "levels": (1,), "select_layer": -2, "keep_attention": True})
    params = to_tree(vision_rules(config, prefix=""), state)["vision"]
    pixels = np.random.default_rng(1).normal(size=(2, 20, 20, 3)).astype(np.float32)
    states: Any = jax.jit(lambda x: VisionTower(config).apply({"params": params}, x))(pixels)
    ours = split_features(states, config)
    found: dict[str, torch.Tensor] = {}
    attend = theirs.encoder.layers[-1].self_attn
    for name in "qk":
        getattr(attend, f"{name}_proj").register_forward_hook(
            lambda module, given, out, name=name: found.__setitem__(name, out)
        )
    theirs(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
    q, k = found["q"], found["k"]
    weights = torch.softmax(q[:, :1] @ k.transpose(1, 2) / 24**0.5, dim=-1)[:, 0, 1:]
    wanted = {"keys": k[:, 1:].detach().numpy(), "attention": weights.detach().numpy()}
    assert max(errors({"keys": ours.keys, "attention": ours.attention}, wanted, False).values()) < TOLERANCE


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_all_hidden_states_and_gradients_agree(activation):
    hf = transformers.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=DEPTH,
        num_attention_heads=3,
        image_size=20,
        patch_size=5,
        hidden_act=activation,
        layer_norm_eps=1e-3,
    )
    theirs = transformers.CLIPVisionModel(hf).float().eval()
    state = randomise(theirs)
    described: VisionConfig = vision_config(hf.to_dict())
    config = VisionConfig(**{**vars(described), "levels": tuple(range(DEPTH + 1)), "select_layer": -1})
    rules = vision_rules(config, prefix="")
    params = to_tree(rules, state)
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(2, 20, 20, 3)).astype(np.float32)
    cotangent = rng.normal(size=(2, 16, DEPTH + 1, 24)).astype(np.float32)

    grads, states = gradients_and_states(config, params, pixels, cotangent)
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
