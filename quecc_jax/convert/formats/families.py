"""Decoder families: their Hugging Face config.json to a DecoderConfig, and back."""

import dataclasses
from collections.abc import Sequence

from quecc_jax.config import DecoderConfig
from quecc_jax.convert.formats.family_keys import FAMILIES, settings
from quecc_jax.convert.formats.rope import hf_rope, local_theta, rope_settings
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

_FAMILY = {known.original: family for family, known in FAMILIES.items() if known.original} | {
    "llava_phi": "phi3",
    "llava_mini_llama": "llama",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def family_of(hf: JsonObject) -> str:
    """The family of a config.json of a language model, or of the original project's models.

    Raises:
      UserError: its model_type is none of those known.
    """
    kind = language_model(hf).get("model_type")
    # The first LLaVA-1.5 files say only "llava"; their decoder is LLaMA's.
    if kind == "llava" and "text_config" not in hf:
        return "llama"
    family = kind if kind in FAMILIES else _FAMILY.get(str(kind))
    if family is None:
        raise UserError(
            f"model_type {kind!r} is not a decoder that is implemented; use one of "
            f"{', '.join([*FAMILIES, *_FAMILY])}"
        )
    return str(family)


def language_model(hf: JsonObject) -> JsonObject:
    """A config.json, or its part for the language model where that is read alone: Gemma 3's, beside a tower."""
    return {"model_type": "gemma3_text"} | hf["text_config"] if has_unread_tower(hf) else hf


def has_unread_tower(hf: JsonObject) -> bool:
    """Whether a config.json is of a vision-language model of which only the language model is read."""
    return hf.get("model_type") == "gemma3" and "text_config" in hf


def decoder_config(hf: JsonObject) -> DecoderConfig:
    """The decoder that a config.json describes.

    Args:
      hf: config.json of a language model, or of one of the original project's vision-language models.

    Raises:
      UserError: an unknown family, or a setting that changes the mathematics in a way that is not
        implemented, by name.
    """
    family = family_of(hf)
    hf = settings(language_model(hf), family)
    if family == "mpt":
        return DecoderConfig(
            vocab_size=hf["vocab_size"],
            width=hf["d_model"],
            depth=hf["n_layers"],
            heads=hf["n_heads"],
            kv_heads=hf["n_heads"],
            mlp_width=4 * hf["d_model"],
            norm_eps=hf["layer_norm_epsilon"],
            alibi_bias_max=hf["attn_config"]["alibi_bias_max"],
            tie_embeddings=bool(hf["tie_word_embeddings"]),
            max_positions=hf["max_seq_len"],
            **FAMILIES[family].decoder,
        )
    width, heads, depth = hf["hidden_size"], hf["num_attention_heads"], hf["num_hidden_layers"]
    window, full_layers, full_every = _window(hf, family, depth)
    always = {"qkv_bias": False, **FAMILIES[family].decoder}
    biased = bool(hf.get("attention_bias"))
    return simplest(
        DecoderConfig(
            vocab_size=hf["vocab_size"],
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=hf["num_key_value_heads"] or heads,
            head_width=hf["head_dim"] or 0,
            mlp_width=hf["intermediate_size"],
            norm_eps=hf["rms_norm_eps"],
            window=window,
            full_layers=full_layers,
            full_every=full_every,
            unrotated_every=_unrotated(hf, depth),
            local_rope_theta=local_theta(hf) if "rope_local_base_freq" in hf and window else 0.0,
            query_scalar=float(hf.get("query_pre_attn_scalar") or 0),
            attention_softcap=float(hf.get("attn_logit_softcapping") or 0),
            logit_softcap=float(hf.get("final_logit_softcapping") or 0),
            out_bias=biased,
            tie_embeddings=bool(hf["tie_word_embeddings"]),
            max_positions=hf["max_position_embeddings"],
            **(always | ({"qkv_bias": True} if biased else {})),
            **rope_settings(hf, partial=family == "phi3"),
        )
    )


def simplest(config: DecoderConfig) -> DecoderConfig:
    """The same decoder, without settings that say what is so without them."""
    plain_width = config.head_width * config.heads == config.width
    alike = config.local_rope_theta == config.rope_theta and config.rope_scaling.kind == "none"
    return dataclasses.replace(
        config,
        head_width=0 if plain_width else config.head_width,
        query_scalar=0.0 if config.query_scalar == config.head_dim else config.query_scalar,
        local_rope_theta=0.0 if alike else config.local_rope_theta,
    )


def _window(hf: JsonObject, family: str, depth: int) -> tuple[int, int, int]:
    """`window`, `full_layers` and `full_every` of a DecoderConfig."""
    known = FAMILIES[family].defaults
    window, kinds = (
        (hf.get("sliding_window") if "sliding_window" in known else None) or 0,
        hf.get("layer_types"),
    )
    _refuse_empty(hf)
    if "layer_types" not in known:
        return window, 0, 0
    windowed = hf.get("use_sliding_window", True)
    if kinds is None and "max_window_layers" in hf:
        first = hf["max_window_layers"] if windowed and window else depth
        kinds = [_FULL if number < first else _SLIDING for number in range(depth)]
    elif kinds is None:
        every = hf.get("sliding_window_pattern") or 2
        kinds = [_SLIDING if (number + 1) % every else _FULL for number in range(depth)]
    if len(kinds) != depth or not {*kinds} <= {_FULL, _SLIDING}:
        found = ", ".join(sorted(map(str, {*kinds})))
        raise UserError(
            f"layer_types in config.json names {len(kinds)} of {depth} layers, as {found}; "
            f"only {_FULL} and {_SLIDING} are implemented, one for each layer"
        )
    full = [kind == _FULL for kind in kinds]
    if all(full):
        return 0, 0, 0
    if not window or not windowed:
        raise UserError(
            f"layer_types in config.json has {_SLIDING}, but sliding_window {hf.get('sliding_window')} or "
            f"use_sliding_window {windowed} gives these layers no window; repair config.json"
        )
    spared = sum(full)
    if full == [True] * spared + [False] * (depth - spared):
        return window, spared, 0
    if every := _every(full):
        return window, 0, every
    raise UserError(
        f"layer_types in config.json mixes {_FULL} and {_SLIDING} in an order that is not implemented; only "
        f"{_FULL} first, or as every n-th layer, is"
    )


def _refuse_empty(hf: JsonObject) -> None:
    """Raises UserError for a window of no positions, which transformers does not take for none."""
    if hf.get("sliding_window") == 0 and hf.get("use_sliding_window", True):
        raise UserError(
            "sliding_window 0 in config.json is not implemented; use null where layers have no window"
        )


def _unrotated(hf: JsonObject, depth: int) -> int:
    """`unrotated_every` of a DecoderConfig."""
    if "no_rope_layer_interval" not in hf:
        return 0
    interval, rotated = hf["no_rope_layer_interval"], hf["no_rope_layers"]
    if rotated is None:
        rotated = [(number + 1) % interval for number in range(depth)]
    bare = [not one for one in rotated[:depth]]
    every = _every(bare) if any(bare) else 0
    if every is None or len(bare) != depth:
        raise UserError(
            f"no_rope_layers in config.json names {len(bare)} of {depth} layers, or leaves out positions in an order "
            "that is not implemented; only a 0 as every n-th of them is"
        )
    return every


def _every(flags: Sequence[bool]) -> int | None:
    """The n with which every n-th flag is set and no other; None if there is none."""
    every = flags.index(True) + 1
    return every if list(flags) == [(number + 1) % every == 0 for number in range(len(flags))] else None


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
    known = FAMILIES[family]
    if family == "mpt":
        hf: JsonObject = {
            "architectures": [known.architecture],
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
            "architectures": [known.architecture],
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
            **{name: value for name, value in _own_keys(config).items() if name in known.defaults},
        }
        if config.head_width or known.defaults["head_dim"]:
            hf["head_dim"] = config.head_dim
        if "hidden_activation" in known.defaults:
            hf["hidden_activation"] = known.defaults["hidden_activation"]
            hf["hidden_act"] = known.defaults["hidden_activation"]
    # Phi-3's default pads with an id that smaller vocabularies do not have.
    hf |= {"model_type": family, "pad_token_id": None}
    wanted, kept = simplest(config), decoder_config(hf)
    for field in dataclasses.fields(DecoderConfig):
        ours, theirs = getattr(wanted, field.name), getattr(kept, field.name)
        if ours != theirs and field.name != "max_positions":
            raise UserError(
                f"model_type {family} cannot express decoder.{field.name} {ours!r} "
                f"(it would be read as {theirs!r}); export to another family"
            )
    return hf


def _own_keys(config: DecoderConfig) -> JsonObject:
    """Keys that some families read."""
    windows = config.layer_windows
    scalar = config.query_scalar or config.head_dim
    first = next((number for number, window in enumerate(windows) if window), config.depth)
    return {
        **({"attention_bias": True} if config.out_bias else {}),
        "sliding_window": config.window or None,
        "use_sliding_window": config.window > 0,
        "max_window_layers": first if config.window else config.full_layers,
        "layer_types": [_SLIDING if window else _FULL for window in windows],
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "rope_local_base_freq": config.local_rope_theta or config.rope_theta,
        "no_rope_layers": [int(rotation != "none") for rotation in config.layer_rotations],
        "no_rope_layer_interval": config.unrotated_every or config.depth + 1,
    }


def guess_family(config: DecoderConfig) -> str:
    """The first family that can express a decoder.

    Raises:
      UserError: none can.
    """
    for family in FAMILIES:
        try:
            hf_decoder_config(config, family)
        except UserError:
            continue
        return family
    raise UserError(
        f"no family of {', '.join(FAMILIES)} can express the decoder of this run; "
        "change its settings to those of one of them"
    )
