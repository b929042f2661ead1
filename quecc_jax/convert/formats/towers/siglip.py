"""SigLIP's vision towers, and SigLIP 2's of one resolution: Hugging Face configs and names to ours."""

import re
from typing import Literal

from quecc_jax.config import VisionConfig
from quecc_jax.config.presets import feature_levels
from quecc_jax.convert.formats.towers.clip import vision_rules
from quecc_jax.convert.formats.towers.family import TowerFamily, check_images
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

_DEFAULTS: JsonObject = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""What a key means that a SigLIP vision config leaves out; in the order in which keys are written."""
_KEYS = {
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "layer_norm_eps": "norm_eps",
}
_ACTIVATIONS: dict[str, Literal["quick_gelu", "gelu", "gelu_tanh"]] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
}


def _read(hf: JsonObject, select_layer: int) -> VisionConfig:
    hf = _DEFAULTS | (hf.get("vision_config") or {} if hf.get("model_type") == "siglip" else hf)
    check_images(hf, "SigLIP")
    if hf["hidden_act"] not in _ACTIVATIONS:
        raise UserError(
            f"the SigLIP config's hidden_act {hf['hidden_act']!r} is not implemented; use a tower with "
            f"{' or '.join(_ACTIVATIONS)}"
        )
    return VisionConfig(
        **{ours: hf[theirs] for theirs, ours in _KEYS.items()},
        activation=_ACTIVATIONS[hf["hidden_act"]],
        drop_border=hf["image_size"] % hf["patch_size"] != 0,
        cls=False,
        patch_bias=True,
        pre_norm=False,
        post_norm=True,
        select_layer=select_layer,
        levels=feature_levels(hf["num_hidden_layers"], select_layer),
    )


def _write(config: VisionConfig) -> JsonObject:
    named: dict[str, str] = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        **_DEFAULTS,
        **{theirs: getattr(config, ours) for theirs, ours in _KEYS.items()},
        "hidden_act": named.get(config.activation, config.activation),
        # The head is in no run.
        "vision_use_head": False,
    }


SIGLIP = TowerFamily(
    name="siglip",
    kinds=("siglip_vision_model", "siglip"),
    anchor="embeddings.patch_embedding.weight",
    prefix="vision_model.",
    post_norm="post_layernorm",
    # The pooling head, and of a whole model the text encoder with temperature and bias.
    beside=re.compile(r"(.*\.)?vision_(model|tower)\.head\..*|head\..*|text_model\..*|logit_(scale|bias)"),
    read=_read,
    write=_write,
    rules=vision_rules,
)
"""SigLIP, and SigLIP 2 in files of that model_type. Their processors resize in different ways."""
