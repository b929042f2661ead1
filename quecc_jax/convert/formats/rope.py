"""Rotary settings of Hugging Face configs, in their old and new spelling, to ours and back."""

import math
from typing import TypedDict

from quecc_jax.config import DecoderConfig, RopeScaling
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

_ALWAYS = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "longrope": {
        "short_factor",
        "long_factor",
        "factor",
        "attention_factor",
        "original_max_position_embeddings",
    },
}
"""Kinds that are implemented, and the settings of each."""


class RopeFields(TypedDict):
    """Fields of a DecoderConfig."""

    rope_theta: float
    rope_fraction: float
    rope_scaling: RopeScaling


def rope_settings(hf: JsonObject, partial: bool) -> RopeFields:
    """The rotary settings of a decoder's config.json, as fields of a DecoderConfig.

    Args:
      hf: a decoder's config.json with its family's defaults filled in. Files of transformers 4 have
        `rope_theta` and `rope_scaling`, those of transformers 5 have `rope_parameters`.
      partial: whether the family rotates a part of each head on request.

    Raises:
      UserError: a kind or setting that is not implemented, by name, or one that is missing.
    """
    given = _of_all_layers(hf)
    kind = given.get("rope_type", given.get("type")) or "default"
    # Phi-3's first files say "su" for what is called "longrope" since.
    kind = "longrope" if kind == "su" else kind
    if kind not in _KEYS:
        raise UserError(
            f"rope_scaling {kind!r} is not implemented; use a model with one of {', '.join(_KEYS)}"
        )
    if unknown := sorted(given.keys() - _KEYS[kind] - _ALWAYS):
        raise UserError(
            f"rope_scaling {kind!r} has the settings {', '.join(unknown)}, which are not "
            "implemented; use a model without them"
        )
    fraction = float(given.get("partial_rotary_factor", hf.get("partial_rotary_factor")) or 1.0)
    if fraction != 1.0 and not partial:
        raise UserError(
            f"partial_rotary_factor {fraction} is not implemented for model_type "
            f"{hf.get('model_type')!r}; use a model without it"
        )
    theta = float(given.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    try:
        scaling = _scaling(kind, given, hf)
    except KeyError as error:
        raise UserError(f"rope_scaling {kind!r} lacks {error.args[0]}; repair config.json") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"rope_scaling {kind!r} in config.json: {error}; repair config.json") from None
    return {"rope_theta": theta, "rope_fraction": fraction, "rope_scaling": scaling}


def _of_all_layers(hf: JsonObject) -> JsonObject:
    """What is said of the layers without a window, where a family (Gemma 3) has others for those with one."""
    scaling, parameters = hf.get("rope_scaling") or {}, hf.get("rope_parameters") or {}
    if "rope_local_base_freq" not in hf:
        return scaling or parameters
    if unknown := sorted(parameters.keys() - {"full_attention", "sliding_attention"}):
        raise UserError(
            f"rope_parameters of {hf.get('model_type')} has {', '.join(unknown)}, but is by kind of layer, "
            "full_attention and sliding_attention; repair config.json"
        )
    return (parameters.get("full_attention") or {}) | scaling


def local_theta(hf: JsonObject) -> float:
    """The rope_theta of layers with a window, in a family that has one of their own.

    Raises:
      UserError: their frequencies are scaled.
    """
    given = (hf.get("rope_parameters") or {}).get("sliding_attention") or {}
    if (kind := given.get("rope_type", "default")) != "default":
        raise UserError(
            f"rope_parameters has rope_type {kind!r} for sliding_attention, which is not implemented; use a model "
            "with 'default'"
        )
    return float(given.get("rope_theta") or hf["rope_local_base_freq"])


def _scaling(kind: str, given: JsonObject, hf: JsonObject) -> RopeScaling:
    if kind == "default":
        return RopeScaling()
    if kind == "linear":
        return RopeScaling("linear", factor=float(given["factor"]))
    longest = hf["max_position_embeddings"]
    name = "original_max_position_embeddings"
    original = hf.get(name) or given.get(name) or longest
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=float(given["factor"]),
            slow_turns=float(given["low_freq_factor"]),
            fast_turns=float(given["high_freq_factor"]),
            original_length=original,
        )
    stretch = given.get("factor") or longest / original
    attention = given.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    return RopeScaling(
        "longrope",
        original_length=original,
        short_factors=tuple(float(x) for x in given["short_factor"]),
        long_factors=tuple(float(x) for x in given["long_factor"]),
        attention_factor=float(attention),
    )


def hf_rope(config: DecoderConfig) -> JsonObject:
    """The keys of a config.json that say what `rope_settings` read, in transformers 4's spelling, which
    version 5 reads too."""
    keys: JsonObject = {"rope_theta": config.rope_theta, "rope_scaling": hf_scaling(config.rope_scaling)}
    if config.rope_fraction != 1.0:
        keys["partial_rotary_factor"] = config.rope_fraction
    if config.rope_scaling.kind == "longrope":
        keys["original_max_position_embeddings"] = config.rope_scaling.original_length
    return keys


def hf_scaling(scaling: RopeScaling) -> JsonObject | None:
    """The `rope_scaling` of a config.json; None without scaling."""
    match scaling.kind:
        case "linear":
            return {"type": "linear", "factor": scaling.factor}
        case "llama3":
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.slow_turns,
                "high_freq_factor": scaling.fast_turns,
                "original_max_position_embeddings": scaling.original_length,
            }
        case "longrope":
            return {
                "type": "longrope",
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
                "attention_factor": scaling.attention_factor,
            }
    return None
