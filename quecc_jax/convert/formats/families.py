"""Decoder families: their Hugging Face config.json to a DecoderConfig, and back."""

import dataclasses
from collections.abc import Callable, Collection, Mapping

from quecc_jax.config import DecoderConfig
from quecc_jax.convert.formats.rope import hf_rope, rope_settings
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

Allowed = Mapping[str, Collection[object]]
"""Settings of a config.json that change what a model computes, and the values that are implemented."""

ORIGINAL = {
    "llama": "llava_llama",
    "mistral": "llava_mistral",
    "qwen2": "llava_qwen",
    "phi3": "llava_phi3",
    "mpt": "llava_mpt",
}
"""Families in the order in which `guess_family` tries them, and what the original project's
config.json calls a vision-language model of each."""

_FAMILY = {kind: family for family, kind in ORIGINAL.items()} | {"llava_phi": "phi3"}

_LLAMA_LIKE: JsonObject = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "attention_bias": False,
    "mlp_bias": False,
}
_MPT_ATTENTION = {
    "attn_type": "multihead_attention",
    "clip_qkv": None,
    "softmax_scale": None,
    "prefix_lm": False,
    "qk_ln": False,
    "attn_uses_sequence_id": False,
    "alibi": True,
    "alibi_bias_max": 8,
}
DEFAULTS: dict[str, JsonObject] = {
    "llama": _LLAMA_LIKE | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048},
    "mistral": _LLAMA_LIKE
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": _LLAMA_LIKE
    | {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
    },
    "phi3": _LLAMA_LIKE
    | {
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    "mpt": {
        "d_model": 2048,
        "n_heads": 16,
        "n_layers": 24,
        "expansion_ratio": 4,
        "max_seq_len": 2048,
        "vocab_size": 50368,
        "layer_norm_epsilon": 1e-5,
        "logit_scale": None,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "tie_word_embeddings": True,
    },
}
"""What a key means that a family's config.json leaves out (transformers' own defaults)."""

_ONLY: Allowed = {
    "hidden_act": ("silu",),
    "expansion_ratio": (4,),
    "no_bias": (True,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_mrope", "use_qk_norm"), (False, None)),
    **dict.fromkeys(
        ("embedding_multiplier", "residual_multiplier", "logits_scaling", "scale_emb"), (1, None)
    ),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "logit_scale"), (None,)),
    **dict.fromkeys(("mup_width_multiplier", "attention_multiplier", "scale_depth"), (None,)),
    "quantization_config": (None,),
    "no_rope_layers": (None, []),
    **{name: (value,) for name, value in _MPT_ATTENTION.items() if name != "alibi_bias_max"},
}


def family_of(hf: JsonObject) -> str:
    """The family of a config.json of a language model, or of the original project's models.

    Raises:
      UserError: its model_type is none of those known.
    """
    kind = hf.get("model_type")
    # The first LLaVA-1.5 files say only "llava"; their decoder is LLaMA's.
    if kind == "llava" and "text_config" not in hf:
        return "llama"
    family = kind if kind in DEFAULTS else _FAMILY.get(str(kind))
    if family is None:
        raise UserError(
            f"model_type {kind!r} is not a decoder that is implemented; use one of "
            f"{', '.join([*DEFAULTS, *_FAMILY])}"
        )
    return family


def settings(hf: JsonObject, family: str) -> JsonObject:
    """A family's config.json, with transformers' defaults for the keys that it leaves out.

    Raises:
      UserError: a value that is not implemented, by name.
    """
    full = DEFAULTS[family] | hf
    attention = _MPT_ATTENTION | (full.get("attn_config") or {}) if family == "mpt" else {}
    refuse({**full, **attention}, _ONLY, f" for {family}")
    return full | ({"attn_config": attention} if attention else {})


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


def decoder_config(hf: JsonObject) -> DecoderConfig:
    """The decoder that a config.json describes.

    Args:
      hf: config.json of a language model, or of one of the original project's vision-language models.

    Raises:
      UserError: an unknown family, or a setting that changes the mathematics in a way that is not
        implemented, by name.
    """
    family = family_of(hf)
    hf = settings(hf, family)
    if family == "mpt":
        return DecoderConfig(
            vocab_size=hf["vocab_size"],
            width=hf["d_model"],
            depth=hf["n_layers"],
            heads=hf["n_heads"],
            kv_heads=hf["n_heads"],
            mlp_width=4 * hf["d_model"],
            mlp="gelu",
            norm="layer",
            norm_eps=hf["layer_norm_epsilon"],
            positions="alibi",
            alibi_bias_max=hf["attn_config"]["alibi_bias_max"],
            tie_embeddings=bool(hf["tie_word_embeddings"]),
            max_positions=hf["max_seq_len"],
        )
    width, heads, depth = hf["hidden_size"], hf["num_attention_heads"], hf["num_hidden_layers"]
    head_width = hf["head_dim"] or 0
    window, full_layers = _window(hf, family, depth)
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=hf["num_key_value_heads"] or heads,
        head_width=0 if head_width * heads == width else head_width,
        mlp_width=hf["intermediate_size"],
        norm_eps=hf["rms_norm_eps"],
        window=window,
        full_layers=full_layers,
        qkv_bias=family == "qwen2",
        tie_embeddings=bool(hf["tie_word_embeddings"]),
        max_positions=hf["max_position_embeddings"],
        **rope_settings(hf, partial=family == "phi3"),
    )


def _window(hf: JsonObject, family: str, depth: int) -> tuple[int, int]:
    """The sliding window in positions, and how many layers at the front have none; (0, 0) without one."""
    window = hf["sliding_window"] or 0
    if family == "llama":
        return 0, 0
    if family != "qwen2":
        return window, 0
    kinds = hf["layer_types"]
    if kinds is None:
        spared = min(hf["max_window_layers"], depth) if hf["use_sliding_window"] else depth
    else:
        spared = kinds.count("full_attention")
        if kinds != ["full_attention"] * spared + ["sliding_attention"] * (depth - spared):
            raise UserError(
                f"layer_types in config.json names {len(kinds)} of {depth} layers, or mixes "
                "them; only full_attention followed by sliding_attention is implemented"
            )
    return (0, 0) if spared == depth or not window else (window, spared)


def hf_decoder_config(config: DecoderConfig, family: str, max_length: int = 2048) -> JsonObject:
    """The config.json of a decoder, made from its settings.

    Args:
      config: the decoder.
      family: the model_type to write.
      max_length: positions that the file promises where the decoder does not say its own.

    Raises:
      UserError: the family cannot express this decoder.
    """
    positions = config.max_positions or max_length
    if family == "mpt":
        hf: JsonObject = {
            "architectures": ["MptForCausalLM"],
            "d_model": config.width,
            "n_heads": config.heads,
            "n_layers": config.depth,
            "expansion_ratio": 4,
            "max_seq_len": positions,
            "vocab_size": config.vocab_size,
            "layer_norm_epsilon": config.norm_eps,
            "no_bias": True,
            "tie_word_embeddings": config.tie_embeddings,
            "attn_config": {"alibi": True, "alibi_bias_max": config.alibi_bias_max},
        }
    else:
        hf = {
            "architectures": [f"{family.capitalize()}ForCausalLM"],
            "vocab_size": config.vocab_size,
            "hidden_size": config.width,
            "intermediate_size": config.mlp_width,
            "num_hidden_layers": config.depth,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "hidden_act": "silu",
            "max_position_embeddings": positions,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            **hf_rope(config),
        }
        if config.head_width:
            hf["head_dim"] = config.head_width
        if family != "llama":
            hf["sliding_window"] = config.window or None
        if family == "qwen2":
            hf |= {"use_sliding_window": config.window > 0, "max_window_layers": config.full_layers}
    # Phi-3's default pads with an id that smaller vocabularies do not have.
    hf |= {"model_type": family, "pad_token_id": None}
    kept = decoder_config(hf)
    for field in dataclasses.fields(DecoderConfig):
        ours, theirs = getattr(config, field.name), getattr(kept, field.name)
        if ours != theirs and field.name != "max_positions":
            raise UserError(
                f"model_type {family} cannot express decoder.{field.name} {ours!r} "
                f"(it would be read as {theirs!r}); export to another family"
            )
    return hf


def guess_family(config: DecoderConfig) -> str:
    """The first family that can express a decoder.

    Raises:
      UserError: none can.
    """
    for family in ORIGINAL:
        try:
            hf_decoder_config(config, family)
        except UserError:
            continue
        return family
    raise UserError(
        f"no family of {', '.join(ORIGINAL)} can express the decoder of this run; "
        "change its settings to those of one of them"
    )
