"""What the keys of a language model's config.json mean, family by family: read, checked, or without effect.

A family is a value here; `families` makes decoders of what is read. Keys that are none of these are told.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

Allowed = Mapping[str, Collection[object]]
"""Settings of a config.json that change what a model computes, and the values that are implemented."""


@dataclasses.dataclass(frozen=True)
class Family:
    """How config.json describes a family's models."""

    architecture: str
    """transformers' class of its language models."""
    defaults: JsonObject
    """What is read, with what a file means that leaves it out (transformers' own defaults)."""
    only: Allowed = dataclasses.field(default_factory=dict)
    """What is checked beside `_ONLY`."""
    decoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of a DecoderConfig that all its models have."""
    original: str = ""
    """What the original project calls a vision-language model of it; empty where it has none."""
    unread: frozenset[str] = frozenset()
    """Keys of published files that transformers does not read either, beside `_WITHOUT_EFFECT`."""


_SHARED: JsonObject = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "rope_parameters": None,
    "partial_rotary_factor": None,
    "original_max_position_embeddings": None,
}
_QWEN = _SHARED | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_GEMMA = {name: value for name, value in _SHARED.items() if name != "hidden_act"} | {
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "intermediate_size": 9216,
    "sliding_window": 4096,
    "layer_types": None,
    "attention_bias": False,
    "query_pre_attn_scalar": 256,
}
_GEMMA_DECODER = {"mlp": "geglu", "norm_sites": "both", "zero_centred_norm": True, "scale_embeddings": True}
_GEMMA_ONLY = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    # Files say it beside hidden_activation, which counts.
    "hidden_act": ("gelu_pytorch_tanh", None),
    "use_bidirectional_attention": (False, None),
}
MPT_ATTENTION = {
    "attn_type": "multihead_attention",
    "clip_qkv": None,
    "softmax_scale": None,
    "prefix_lm": False,
    "qk_ln": False,
    "attn_uses_sequence_id": False,
    "alibi": True,
    "alibi_bias_max": 8,
}
"""MPT's `attn_config` where it does not say."""

FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        _SHARED | {"max_position_embeddings": 2048, "attention_bias": False},
        original="llava_llama",
    ),
    "mistral": Family(
        "MistralForCausalLM",
        _SHARED
        | {
            "intermediate_size": 14336,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
        original="llava_mistral",
    ),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN, decoder={"qkv_bias": True}, original="llava_qwen"),
    "phi3": Family(
        "Phi3ForCausalLM",
        _SHARED
        | {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "sliding_window": None,
        },
        # Phi-4-mini's files name parts of its code that these values switch off.
        {"full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False, None)},
        original="llava_phi3",
    ),
    "mpt": Family(
        "MptForCausalLM",
        {
            "d_model": 2048,
            "n_heads": 16,
            "n_layers": 24,
            "expansion_ratio": 4,
            "max_seq_len": 2048,
            "vocab_size": 50368,
            "layer_norm_epsilon": 1e-5,
            "no_bias": True,
            "norm_type": "low_precision_layernorm",
            "tie_word_embeddings": True,
            "attn_config": None,
        },
        {
            "expansion_ratio": (4,),
            "no_bias": (True,),
            "norm_type": ("low_precision_layernorm", "layernorm"),
            **{name: (value,) for name, value in MPT_ATTENTION.items() if name != "alibi_bias_max"},
            "emb_pdrop": (0, None),
        },
        {"mlp": "gelu", "norm": "layer", "positions": "alibi"},
        original="llava_mpt",
        unread=frozenset(
            {
                "embedding_fraction",
                "init_config",
                "init_device",
                "learned_pos_emb",
                "tokenizer_name",
                "verbose",
            }
        ),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", _QWEN | {"head_dim": 128, "attention_bias": False}, decoder={"qk_norm": "head"}
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        _SHARED
        | {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
        },
        {"use_sliding_window": (False, None)},
        unread=frozenset({"sliding_window", "max_window_layers"}),
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _SHARED
        | {
            "vocab_size": 50304,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
        },
        decoder={"norm_sites": "after", "qk_norm": "all"},
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        _GEMMA
        | {
            "vocab_size": 256000,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        _GEMMA_ONLY,
        _GEMMA_DECODER,
        unread=frozenset({"sliding_window_size"}),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA
        | {
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": None,
            "sliding_window_pattern": 6,
        },
        # transformers reads no attn_logit_softcapping here, whatever it says.
        {**_GEMMA_ONLY, "attn_logit_softcapping": (None,)},
        {**_GEMMA_DECODER, "qk_norm": "head"},
        unread=frozenset({"_sliding_window_pattern"}),
    ),
}
"""By model_type, in the order in which a decoder's family is guessed."""

_ONLY: Allowed = {
    "hidden_act": ("silu",),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_mrope", "use_qk_norm"), (False, None)),
    **dict.fromkeys(
        ("embedding_multiplier", "residual_multiplier", "logits_scaling", "scale_emb"), (1, None)
    ),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_scale"), (None,)),
    **dict.fromkeys(("mup_width_multiplier", "attention_multiplier", "scale_depth"), (None,)),
    **dict.fromkeys(
        ("clip_qkv", "query_pre_attn_scalar", "quantization", "quantization_config", "per_layer_config"),
        (None,),
    ),
    **dict.fromkeys(("attention_dropout", "embd_pdrop", "resid_pdrop"), (0, None)),
    "is_encoder_decoder": (False, None),
    "no_rope_layers": (None, []),
}
"""Checked in every family that does not read it."""

_WITHOUT_EFFECT = frozenset(
    re.findall(
        r"\w+",
        """
        _attn_implementation _commit_hash _name_or_path architectures auto_map bos_token_id
        cache_implementation chunk_size_feed_forward conversation_template dtype eos_token_id
        id2label initializer_range label2id model_type name_or_path num_labels output_attentions
        output_hidden_states pad_token_id pretraining_tp problem_type return_dict
        tie_last_hidden_states tokenizer_class torch_dtype torchscript transformers_version
        unk_token_id use_cache use_return_dict
        """,
    )
)
"""How a model is stored, first drawn, run or told apart: nothing that it computes of a row."""

_PLAIN: Allowed = {
    **dict.fromkeys(("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0, None)),
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1, None)),
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty"), (1, None)),
    **dict.fromkeys(("do_sample", "early_stopping", "output_scores", "is_decoder"), (False, None)),
    **dict.fromkeys(("return_dict_in_generate", "remove_invalid_values"), (False, None)),
    **dict.fromkeys(("add_cross_attention", "tie_encoder_decoder"), (False, None)),
    **dict.fromkeys(("tf_legacy_loss", "use_bfloat16"), (False, None)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"), (None,)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id"), (None,)),
    **dict.fromkeys(("exponential_decay_length_penalty", "cross_attention_hidden_size"), (None,)),
    **dict.fromkeys(("finetuning_task", "prefix", "sep_token_id", "task_specific_params"), (None,)),
    "max_length": (20, None),
    "top_k": (50, None),
    "length_penalty": (1, None),
    "diversity_penalty": (0, None),
    "pruned_heads": ({}, None),
}
"""What every config.json of transformers 4 says, and means by it that nothing is to be done; another value is
told."""


_OBJECTS = ("rope_scaling", "rope_parameters", "attn_config")
_LISTS = ("layer_types", "no_rope_layers")
_NEVER_NULL = frozenset(
    re.findall(
        r"\w+",
        """
        vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size rms_norm_eps
        max_position_embeddings no_rope_layer_interval d_model n_heads n_layers max_seq_len layer_norm_epsilon
        """,
    )
)


def settings(hf: JsonObject, family: str) -> JsonObject:
    """What is read of a family's config.json, with transformers' defaults for the keys that it leaves out.

    Keys of other families are left out: transformers does not read them here either.

    Raises:
      UserError: a value that is not implemented, or of another type, by name.
    """
    known = FAMILIES[family]
    full = known.defaults | hf
    _check_types(full, known.defaults)
    attention = MPT_ATTENTION | (full.get("attn_config") or {}) if family == "mpt" else {}
    shared = {
        name: values for name, values in _ONLY.items() if name not in known.defaults or name == "hidden_act"
    }
    refuse({**full, **attention}, {**shared, **known.only}, f" for {family}")
    kinds = full.get("layer_types")
    if "layer_types" not in known.defaults and kinds and set(kinds) != {"full_attention"}:
        raise UserError(
            f"layer_types {kinds!r} in config.json is not implemented for {family}; use a model whose layers all "
            "are full_attention"
        )
    read = {name: full[name] for name in ("model_type", *known.defaults) if name in full}
    return read | ({"attn_config": attention} if attention else {})


def _check_types(full: JsonObject, defaults: JsonObject) -> None:
    """Raises UserError where a key that is read has a value of another type, such as a number in quotes."""
    for name, default in defaults.items():
        value = full[name]
        if name in _OBJECTS:
            wanted, fits = "an object", isinstance(value, dict)
        elif name in _LISTS:
            wanted, fits = "a list", isinstance(value, list)
        elif isinstance(default, bool):
            wanted, fits = "true or false", isinstance(value, bool)
        elif isinstance(default, str):
            continue
        else:
            wanted, fits = "a number", isinstance(value, int | float) and not isinstance(value, bool)
        if not fits and (value is not None or name in _NEVER_NULL):
            raise UserError(f"{name} {value!r} in config.json is not {wanted}; repair config.json")


def unknown_keys(hf: JsonObject, family: str) -> list[str]:
    """Keys of a language model's config.json of which nothing is known, and which are not read."""
    known = FAMILIES[family]
    names = {*known.defaults, *known.only, *known.unread, *_ONLY, *_WITHOUT_EFFECT, "layer_types"}
    return sorted(name for name in hf.keys() - names if name not in _PLAIN or hf[name] not in _PLAIN[name])


def refuse(
    hf: JsonObject, only: Allowed, whom: str = "", explain: Callable[[str, object], str] = lambda *_: ""
) -> None:
    """Checks the settings of a config.json that change what a model computes.

    Args:
      hf: the settings; those that are absent are not looked at.
      only: the values that are implemented.
      whom: " for ..." in the message.
      explain: what a setting and its value mean, for the message.

    Raises:
      UserError: another value, by name.
    """
    for name, allowed in only.items():
        if name in hf and hf[name] not in allowed:
            raise UserError(
                f"{name} {hf[name]!r} in config.json{explain(name, hf[name])} is not implemented{whom}; "
                f"use a model with {' or '.join(map(repr, allowed))}"
            )
