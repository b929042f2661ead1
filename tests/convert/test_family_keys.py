"""Every key of today's config.json files: read, checked or without effect; none is passed over in silence."""

import dataclasses
from typing import Any

import pytest

from quecc_jax.config import DecoderConfig, RopeScaling, presets
from quecc_jax.convert.formats import family_keys
from quecc_jax.convert.formats.families import decoder_config, guess_family, hf_decoder_config
from quecc_jax.convert.formats.family_keys import FAMILIES, unknown_keys
from quecc_jax.errors import UserError
from tests.convert.published import FACTORS, PUBLISHED, shrunken

QWEN25 = dataclasses.replace(presets.decoder("qwen1.5-0.5b"), max_positions=32768)
EXPECTED = {
    "Qwen/Qwen2.5-0.5B-Instruct": dataclasses.replace(
        QWEN25, width=896, heads=14, kv_heads=2, mlp_width=4864
    ),
    "Qwen/Qwen3-4B": presets.decoder("qwen3-4b"),
    "meta-llama/Llama-3.2-1B-Instruct": presets.decoder("llama3.2-1b"),
    "mistralai/Mistral-7B-Instruct-v0.3": DecoderConfig(
        32768, kv_heads=8, mlp_width=14336, rope_theta=1e6, max_positions=32768
    ),
    "HuggingFaceTB/SmolLM3-3B": DecoderConfig(
        128256,
        2048,
        36,
        16,
        4,
        norm_eps=1e-6,
        rope_theta=5e6,
        unrotated_every=4,
        tie_embeddings=True,
        max_positions=65536,
    ),
    "allenai/OLMo-2-1124-7B": DecoderConfig(
        100352, norm_eps=1e-6, norm_sites="after", qk_norm="all", rope_theta=5e5, max_positions=4096
    ),
    "microsoft/Phi-4-mini-instruct": DecoderConfig(
        200064,
        3072,
        32,
        24,
        8,
        mlp_width=8192,
        rope_fraction=0.75,
        rope_scaling=RopeScaling(
            "longrope",
            original_length=4096,
            short_factors=tuple(FACTORS),
            long_factors=tuple(FACTORS[::-1]),
            attention_factor=1.1902380714238083,
        ),
        window=262144,
        tie_embeddings=True,
        max_positions=131072,
    ),
    "google/gemma-2-2b-it": DecoderConfig(
        256000,
        2304,
        26,
        8,
        4,
        head_width=256,
        mlp_width=9216,
        mlp="geglu",
        norm_eps=1e-6,
        norm_sites="both",
        zero_centred_norm=True,
        window=4096,
        full_every=2,
        attention_softcap=50.0,
        logit_softcap=30.0,
        scale_embeddings=True,
        tie_embeddings=True,
        max_positions=8192,
    ),
    "google/gemma-3-1b-it": presets.decoder("gemma3-1b"),
    "google/gemma-3-27b-it": presets.decoder("gemma3-27b"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_these_decoders_and_say_nothing_unknown(name):
    hf = PUBLISHED[name]
    assert decoder_config(hf) == EXPECTED[name]
    assert unknown_keys(hf, hf["model_type"]) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_decoder_is_written_as_the_family_that_it_came_as(name):
    family = PUBLISHED[name]["model_type"]
    written = hf_decoder_config(EXPECTED[name], family)
    assert decoder_config(written) == EXPECTED[name]
    assert (
        written["architectures"] == PUBLISHED[name]["architectures"]
        if "architectures" in PUBLISHED[name]
        else True
    )
    # Mistral v0.3 and Llama are one architecture.
    assert guess_family(EXPECTED[name]) == {"mistral": "llama"}.get(family, family)


@pytest.mark.parametrize("name", presets.DECODERS)
def test_presets_can_be_written(name):
    config = presets.decoder(name)
    assert decoder_config(hf_decoder_config(config, guess_family(config))) == config


LONG = {"type": "longrope", "short_factor": [1.0, 1.3, 2.0], "long_factor": [1.5, 3.0, 0.6]}
BASES: dict[str, dict[str, Any]] = {
    family: shrunken(name) for name, hf in PUBLISHED.items() for family in [hf["model_type"]]
} | {
    "mpt": {"model_type": "mpt"},
    "gemma3_text": shrunken("google/gemma-3-1b-it"),
    # Where the window is off, what says more of it means nothing.
    "qwen2": shrunken("Qwen/Qwen2.5-0.5B-Instruct", use_sliding_window=True, max_window_layers=1),
    "qwen3": shrunken("Qwen/Qwen3-4B", use_sliding_window=True, sliding_window=4, max_window_layers=1),
    "smollm3": shrunken("HuggingFaceTB/SmolLM3-3B", no_rope_layers=None, layer_types=None),
}
OTHER: dict[str, Any] = {
    "hidden_act": "relu",
    "hidden_activation": "gelu",
    "num_key_value_heads": 6,
    "head_dim": 20,
    "hidden_size": 48,
    "d_model": 64,
    "num_attention_heads": 12,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    "partial_rotary_factor": 0.5,
    "layer_types": ["sliding_attention", "full_attention"],
    "no_rope_layers": [1, 0, 1, 0, 1],
    "attn_config": {"qk_ln": True},
    "attn_type": "multiquery_attention",
    "norm_type": "rmsnorm",
    "logit_scale": 0.5,
    "softmax_scale": 0.5,
    "clip_qkv": 6,
    "quantization": {"bits": 4},
    "quantization_config": {"bits": 4},
    "per_layer_config": {"0": {"hidden_size": 4}},
}
"""What a key is changed to; numbers and switches not listed become another number, or are switched."""


def other(name: str, value: Any) -> Any:
    if name in OTHER:
        return OTHER[name]
    switch = name.endswith(
        ("_bias", "_encoder_decoder", "_attention", "_qk_norm", "_mrope", "use_sliding_window")
    )
    if isinstance(value, bool) or (switch and value is None):
        return not value
    return 3 if value is None else value * 2 + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_of_the_computation_changes_the_decoder_or_is_refused(family):
    base, known = BASES[family], FAMILIES[family]
    silent = []
    more = family_keys.MPT_ATTENTION if family == "mpt" else {}
    for name in {*known.defaults, *known.only, *family_keys._ONLY, *more}:
        hf = {key: value for key, value in base.items() if (name, key) != ("rope_parameters", "rope_scaling")}
        if name == "original_max_position_embeddings" and family != "phi3":
            # It is of scaled positions alone.
            hf["rope_scaling"] = shrunken("meta-llama/Llama-3.2-1B-Instruct")["rope_scaling"]
            decoder = decoder_config(hf)
        else:
            decoder = decoder_config(base)
        if name == "rope_parameters" and family == "gemma3_text":
            changed: Any = {"full_attention": {"rope_type": "default", "rope_theta": 77.0}}
        elif name == "partial_rotary_factor" and base.get(name):
            changed = 1.0
        else:
            changed = other(name, base.get(name, {**known.defaults, **more}.get(name)))
        nested = family == "mpt" and name in family_keys.MPT_ATTENTION
        try:
            if (
                decoder_config(hf | {"attn_config": {name: changed}} if nested else hf | {name: changed})
                == decoder
            ):
                silent.append(name)
        except UserError as error:
            assert {"attn_config": "qk_ln"}.get(name, name) in str(error)
    assert silent == []


def test_keys_of_which_nothing_is_known_are_named():
    hf = PUBLISHED["Qwen/Qwen3-4B"] | {"unsloth_version": "2026.1", "attn_scale": 2.0}
    assert unknown_keys(hf, "qwen3") == ["attn_scale", "unsloth_version"]


def test_what_every_config_json_says_is_told_where_it_asks_for_something() -> None:
    said = {"repetition_penalty": 1.0, "pruned_heads": {}, "max_length": 20, "is_decoder": False}
    assert unknown_keys(said, "llama") == []
    asked = {"repetition_penalty": 1.1, "pruned_heads": {"0": [1]}, "max_length": 20, "is_decoder": True}
    assert unknown_keys(asked, "llama") == ["is_decoder", "pruned_heads", "repetition_penalty"]


@pytest.mark.parametrize(
    "name, changes, says",
    [
        ("Qwen/Qwen3-4B", {"layer_types": 36 * ["sliding_attention"]}, "gives these layers no window"),
        ("google/gemma-2-2b-it", {"sliding_window": None}, "gives these layers no window"),
        (
            "google/gemma-2-2b-it",
            {"layer_types": ["chunked_attention"]},
            "names 1 of 26 layers, as chunked_attention",
        ),
        (
            "google/gemma-2-2b-it",
            {"layer_types": ["sliding_attention", *25 * ["full_attention"]]},
            "in an order that is not implemented",
        ),
        ("google/gemma-2-2b-it", {"use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ("google/gemma-3-1b-it", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("google/gemma-3-1b-it", {"rope_parameters": {"rope_theta": 5.0}}, "is by kind of layer"),
        (
            "google/gemma-3-1b-it",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "'linear' for sliding_attention",
        ),
        (
            "HuggingFaceTB/SmolLM3-3B",
            {"no_rope_layers": [1, 1]},
            "no_rope_layers in config.json names 2 of 36",
        ),
        (
            "HuggingFaceTB/SmolLM3-3B",
            {"no_rope_layers": [0, *35 * [1]]},
            "in an order that is not implemented",
        ),
        ("HuggingFaceTB/SmolLM3-3B", {"use_sliding_window": True}, "use_sliding_window True"),
        (
            "HuggingFaceTB/SmolLM3-3B",
            {"layer_types": 36 * ["sliding_attention"]},
            "not implemented for smollm3",
        ),
        ("HuggingFaceTB/SmolLM3-3B", {"mlp_bias": True}, "mlp_bias True"),
        ("microsoft/Phi-4-mini-instruct", {"attention_bias": True}, "attention_bias True"),
        ("microsoft/Phi-4-mini-instruct", {"lm_head_bias": True}, "lm_head_bias True"),
        ("Qwen/Qwen3-4B", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling 'yarn'"),
        ("Qwen/Qwen3-4B", {"attention_dropout": 0.1}, "attention_dropout 0.1"),
        ("Qwen/Qwen3-4B", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ("allenai/OLMo-2-1124-7B", {"clip_qkv": 8}, "clip_qkv 8"),
        ("allenai/OLMo-2-1124-7B", {"model_type": "olmo3"}, "model_type 'olmo3' is not a decoder"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(name, changes, says):
    with pytest.raises(UserError, match=says):
        decoder_config(PUBLISHED[name] | changes)


@pytest.mark.parametrize(
    "family, changes, named",
    [
        ("qwen3", {}, "qk_norm 'none'"),
        ("llama", {"qk_norm": "head"}, "qk_norm 'head'"),
        ("gemma2", {"mlp": "geglu"}, "norm_sites"),
        ("llama", {"unrotated_every": 4}, "unrotated_every 4"),
        ("llama", {"scale_embeddings": True}, "scale_embeddings True"),
        ("mistral", {"window": 8, "full_every": 2}, "full_every 2"),
        ("olmo2", {"norm_sites": "after", "qk_norm": "all", "logit_softcap": 30.0}, "logit_softcap 30.0"),
    ],
)
def test_a_family_that_cannot_express_a_decoder_says_what(family, changes, named):
    with pytest.raises(UserError, match=named):
        hf_decoder_config(dataclasses.replace(DecoderConfig(), **changes), family)


def test_settings_that_say_what_is_so_anyway_are_no_hindrance():
    config = dataclasses.replace(
        presets.decoder("gemma3-1b"), query_scalar=256.0, local_rope_theta=1e6, vocab_size=64
    )
    read = decoder_config(hf_decoder_config(config, "gemma3_text"))
    assert (read.query_scalar, read.local_rope_theta) == (0.0, 0.0)
    assert (
        decoder_config(
            hf_decoder_config(dataclasses.replace(DecoderConfig(), head_width=128), "llama")
        ).head_width
        == 0
    )


@pytest.mark.parametrize(
    "name, keys",
    [
        ("google/gemma-2-2b-it", {"sliding_window_pattern": 3}),
        ("google/gemma-2-2b-it", {"max_window_layers": 1}),
        ("google/gemma-2-2b-it", {"use_sliding_window": False}),
        ("mistralai/Mistral-7B-Instruct-v0.3", {"rope_local_base_freq": 7.0}),
        ("meta-llama/Llama-3.2-1B-Instruct", {"no_rope_layer_interval": 2}),
    ],
)
def test_keys_of_other_families_are_told_and_not_read(name, keys):
    """As in transformers."""
    plain = shrunken(name, **({"sliding_window": 4} if "Mistral" in name else {}))
    assert decoder_config(plain | keys) == decoder_config(plain)
    assert unknown_keys(plain | keys, plain["model_type"]) == sorted(keys)


@pytest.mark.parametrize(
    "name, key, value, told",
    [
        ("Qwen/Qwen3-4B", "hidden_size", "24", "a number"),
        ("Qwen/Qwen3-4B", "num_attention_heads", None, "a number"),
        ("Qwen/Qwen3-4B", "rope_theta", "100", "a number"),
        ("Qwen/Qwen3-4B", "tie_word_embeddings", "false", "true or false"),
        ("Qwen/Qwen3-4B", "rope_scaling", "linear", "an object"),
        ("Qwen/Qwen3-4B", "layer_types", "full_attention", "a list"),
        ("HuggingFaceTB/SmolLM3-3B", "no_rope_layers", 3, "a list"),
    ],
)
def test_values_of_another_type_are_refused_by_name(name, key, value, told):
    with pytest.raises(UserError, match=f"{key} {value!r} in config.json is not {told}"):
        decoder_config(shrunken(name, **{key: value}))


def test_factors_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="rope_scaling 'linear' in config"):
        decoder_config(shrunken("Qwen/Qwen3-4B", rope_scaling={"type": "linear", "factor": "much"}))


def test_a_window_of_no_positions_is_refused():
    """transformers masks with it, where null means none."""
    mistral = "mistralai/Mistral-7B-Instruct-v0.3"
    with pytest.raises(UserError, match="sliding_window 0"):
        decoder_config(shrunken(mistral, sliding_window=0))
    assert decoder_config(shrunken(mistral, sliding_window=None)).window == 0


def test_the_length_that_a_scaling_starts_from_is_read_in_every_family():
    """transformers takes it from outside of rope_scaling first, whatever the family."""
    hf = shrunken("meta-llama/Llama-3.2-1B-Instruct", original_max_position_embeddings=32)
    assert decoder_config(hf).rope_scaling.original_length == 32
    assert unknown_keys(hf, "llama") == []
