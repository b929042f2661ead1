"""Published decoder configs, refusals by name, and the names of every family."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from quecc_jax.config import DecoderConfig, RopeScaling
from quecc_jax.convert.formats.decoder_rules import decoder_rules
from quecc_jax.convert.formats.families import decoder_config, guess_family, hf_decoder_config
from quecc_jax.convert.formats.family_keys import FAMILIES
from quecc_jax.convert.rules import from_tree, to_tree
from quecc_jax.errors import UserError
from tests.convert.names import load, random_tensors

QWEN = DecoderConfig(
    151936, 896, 24, 14, 2, mlp_width=4864, norm_eps=1e-6, rope_theta=1e6, qkv_bias=True, tie_embeddings=True
)
PHI = DecoderConfig(32064, 3072, mlp_width=8192, norm_eps=1e-5, window=2047)
FACTORS = [1.0 + i / 48 for i in range(48)]

PUBLISHED: dict[str, tuple[dict[str, Any], DecoderConfig]] = {
    "Vicuna-7B": (
        {
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        DecoderConfig(),
    ),
    "LLaMA-3.1-8B": (
        {
            "model_type": "llama",
            "attention_bias": False,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "vocab_size": 128256,
        },
        DecoderConfig(
            128256,
            kv_heads=8,
            mlp_width=14336,
            rope_theta=5e5,
            rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
        ),
    ),
    "linear": (
        {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        DecoderConfig(rope_scaling=RopeScaling("linear", 4.0)),
    ),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "vocab_size": 32000,
        },
        DecoderConfig(kv_heads=8, mlp_width=14336, window=4096),
    ),
    "Mistral-Nemo": (
        {
            "model_type": "mistral",
            "head_dim": 128,
            "hidden_size": 5120,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "vocab_size": 131072,
        },
        DecoderConfig(131072, 5120, 40, kv_heads=8, head_width=128, mlp_width=14336, rope_theta=1e6),
    ),
    "Qwen2-0.5B": (
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "max_window_layers": 24,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        QWEN,
    ),
    "Qwen2 with windows from layer 20": (
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "max_window_layers": 20,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
            "sliding_window": 512,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "vocab_size": 151936,
        },
        dataclasses.replace(QWEN, window=512, full_layers=20),
    ),
    "Phi-3-mini-4k": (
        {
            "model_type": "phi3",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "max_position_embeddings": 4096,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 32,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "sliding_window": 2047,
            "vocab_size": 32064,
        },
        PHI,
    ),
    "Phi-3-mini-128k": (
        {
            "model_type": "phi3",
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "su", "short_factor": FACTORS, "long_factor": FACTORS[::-1]},
            "sliding_window": 262144,
        },
        dataclasses.replace(
            PHI,
            window=262144,
            rope_scaling=RopeScaling(
                "longrope",
                original_length=4096,
                short_factors=tuple(FACTORS),
                long_factors=tuple(FACTORS[::-1]),
                attention_factor=math.sqrt(1 + math.log(32) / math.log(4096)),
            ),
        ),
    ),
    "MPT-7B": (
        {
            "model_type": "mpt",
            "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch"},
            "d_model": 4096,
            "expansion_ratio": 4,
            "learned_pos_emb": True,
            "n_heads": 32,
            "n_layers": 32,
            "no_bias": True,
            "norm_type": "low_precision_layernorm",
            "vocab_size": 50432,
        },
        DecoderConfig(
            50432, mlp_width=16384, mlp="gelu", norm="layer", positions="alibi", tie_embeddings=True
        ),
    ),
    "the first LLaVA-1.5": (
        {"model_type": "llava", "rms_norm_eps": 1e-05, "mm_vision_tower": "x", "vocab_size": 32000},
        DecoderConfig(),
    ),
}


PROMISED = {
    "Vicuna-7B": 4096,
    "LLaMA-3.1-8B": 131072,
    "linear": 2048,
    "Mistral-7B-v0.1": 131072,
    "Mistral-Nemo": 131072,
    "Qwen2-0.5B": 32768,
    "Qwen2 with windows from layer 20": 32768,
    "Phi-3-mini-4k": 4096,
    "Phi-3-mini-128k": 131072,
    "MPT-7B": 2048,
    "the first LLaVA-1.5": 2048,
}
"""Positions that these configs promise, or transformers' defaults of their families."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_these_decoders(name):
    hf, expected = PUBLISHED[name]
    assert decoder_config(hf) == dataclasses.replace(expected, max_positions=PROMISED[name])


def test_a_decoder_that_does_not_say_its_positions_promises_the_runs():
    config = DecoderConfig()
    assert hf_decoder_config(config, "llama", 100)["max_position_embeddings"] == 100
    assert (
        hf_decoder_config(dataclasses.replace(config, max_positions=7), "llama", 100)[
            "max_position_embeddings"
        ]
        == 7
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_decoder_written_anew_is_the_same_decoder(name):
    hf, expected = PUBLISHED[name]
    expected = dataclasses.replace(expected, max_positions=PROMISED[name])
    family = hf["model_type"] if hf["model_type"] in FAMILIES else "llama"
    assert decoder_config(hf_decoder_config(expected, family)) == expected
    written = hf_decoder_config(expected, guess_family(expected))
    assert decoder_config(written) == expected


@pytest.mark.parametrize(
    "family, changes, named",
    [
        ("gemma", {}, "model_type 'gemma'"),
        ("mistral", {"attention_bias": True}, "attention_bias True"),
        ("llama", {"mlp_bias": True}, "mlp_bias True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling 'dynamic'"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling 'yarn'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta": 1}}, "settings beta"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            "qwen2",
            {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2},
            "layer_types",
        ),
        ("phi3", {"rope_scaling": {"type": "yarn", "short_factor": [1], "long_factor": [1]}}, "'yarn'"),
        ("llama", {"residual_multiplier": 0.22}, "residual_multiplier 0.22"),
        ("llama", {"attention_multiplier": 0.0078}, "attention_multiplier"),
        ("llama", {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ("mistral", {"logits_scaling": 8.0}, "logits_scaling 8.0"),
        ("mpt", {"attn_config": {"clip_qkv": 6}}, "clip_qkv 6"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln True"),
        ("mpt", {"attn_config": {"alibi": False}}, "alibi False"),
        ("mpt", {"attn_config": {"attn_type": "multiquery_attention"}}, "attn_type"),
        ("mpt", {"no_bias": False}, "no_bias False"),
        ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale"),
        ("mpt", {"expansion_ratio": 3}, "expansion_ratio 3"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(family, changes, named):
    with pytest.raises(UserError, match=named):
        decoder_config({"model_type": family} | changes)


@pytest.mark.parametrize(
    "family, changes, named",
    [
        ("llama", {"qkv_bias": True}, "qkv_bias True"),
        ("llama", {"window": 8}, "window 8"),
        ("mistral", {"mlp": "gelu"}, "mlp 'gelu'"),
        ("mpt", {}, "mlp_width|kv_heads|mlp "),
    ],
)
def test_a_family_that_cannot_express_a_decoder_says_what(family, changes, named):
    with pytest.raises(UserError, match=named):
        hf_decoder_config(dataclasses.replace(DecoderConfig(), **changes), family)


def test_no_family_fits_a_mixture():
    with pytest.raises(UserError, match="no family"):
        guess_family(DecoderConfig(mlp="gelu"))


def numbered(family: str) -> tuple[DecoderConfig, dict[str, Any], dict[str, np.ndarray]]:
    """(config, our tree, their tensors) of a family's small checkpoint."""
    found = load(family)
    config = decoder_config(found["config"])
    theirs = random_tensors({k: tuple(v) for k, v in found["tensors"].items()}, np.float16)
    return config, to_tree(decoder_rules(config, family), theirs)["decoder"], theirs


def test_fused_projections_are_split_in_the_order_of_their_rows():
    config, tree, theirs = numbered("phi3")
    width, heads, keys, d = config.width, config.heads, config.kv_heads, config.head_dim
    fused = theirs["model.layers.1.self_attn.qkv_proj.weight"]
    ends = [heads * d, (heads + keys) * d, (heads + 2 * keys) * d]
    for name, rows, n in zip("qkv", np.split(fused, ends[:-1]), (heads, keys, keys), strict=True):
        expected = rows.reshape(n, d, width).transpose(2, 0, 1)
        assert tree["layers"][name]["kernel"][1].tobytes() == expected.tobytes()
    gate, up = np.split(theirs["model.layers.1.mlp.gate_up_proj.weight"], 2)
    assert tree["layers"]["gate"]["kernel"][1].tobytes() == gate.T.tobytes()
    assert tree["layers"]["up"]["kernel"][1].tobytes() == up.T.tobytes()

    config, tree, theirs = numbered("mpt")
    for name, rows in zip("qkv", np.split(theirs["transformer.blocks.0.attn.Wqkv.weight"], 3), strict=True):
        expected = rows.reshape(config.heads, config.head_dim, config.width).transpose(2, 0, 1)
        assert tree["layers"][name]["kernel"][0].tobytes() == expected.tobytes()


def test_the_copy_of_a_tied_table_must_equal_it():
    config = decoder_config(load("qwen2")["config"])
    rules = decoder_rules(config, "qwen2", head_too=True)
    shapes = {n: s for rule in rules for n, s in zip(rule.theirs, rule.shapes, strict=True)}
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"]
    theirs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tree = to_tree(rules, theirs)
    assert "head" not in tree["decoder"] and from_tree(rules, tree).keys() == theirs.keys()
    theirs["lm_head.weight"][3, 2] = 1
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        to_tree(rules, theirs)
