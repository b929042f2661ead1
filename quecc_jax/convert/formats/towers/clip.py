"""CLIP vision towers: Hugging Face configs and names to ours."""

import re

from quecc_jax.config import PixelConfig, VisionConfig
from quecc_jax.config.query import ClipTextConfig
from quecc_jax.convert.formats.towers.family import TowerFamily, check_images, patch_kernel, table_rows
from quecc_jax.convert.rules import Rule, Scope, dense, norm, same, vector
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

LEVELS = (12, 16, 22, 23)
"""Hidden states that the original's multi-level features always come from."""

DEFAULTS: JsonObject = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What a key means that a CLIP vision config leaves out; in the order in which keys are written."""

TOWER_KEYS = {
    "hidden_size": "width",
    "intermediate_size": "mlp_width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "hidden_act": "activation",
    "layer_norm_eps": "norm_eps",
}
"""Keys of either tower's config.json, and our fields."""
_KEYS = TOWER_KEYS | {"image_size": "image_size", "patch_size": "patch_size"}

CLIP_L_336 = VisionConfig(post_norm=True)
"""The tower of LLaVA-1.5, and of a llava-hf config.json that describes none."""
KNOWN = {
    "openai/clip-vit-large-patch14-336": CLIP_L_336,
    "openai/clip-vit-large-patch14": VisionConfig(image_size=224, post_norm=True),
}
"""Towers that checkpoints name without describing them."""

_NOT_VISION = re.compile(r"text_model\..*|logit_scale|(text|visual)_projection\.weight")
"""Of a whole CLIP model the text encoder, both projections into the common space, and the temperature."""


def vision_config(hf: JsonObject, select_layer: int = -2) -> VisionConfig:
    """The tower that a config.json of model_type `clip_vision_model` or `clip` describes.

    The multi-level features are the original's states 12, 16, 22 and 23; a tower that has not so
    many layers gets the select layer alone.

    Raises:
      UserError: a setting that changes the mathematics in a way that is not implemented, by name.
    """
    hf = DEFAULTS | (hf.get("vision_config") or {} if hf.get("model_type") == "clip" else hf)
    check_images(hf, "CLIP")
    check_activation(hf)
    levels = LEVELS if hf["num_hidden_layers"] >= max(LEVELS) else (select_layer,)
    fields = {ours: hf[theirs] for theirs, ours in _KEYS.items()}
    return VisionConfig(**fields, select_layer=select_layer, levels=levels, post_norm=True)


def check_activation(hf: JsonObject) -> None:
    """Raises UserError for a tower of images or text whose activation is not implemented."""
    if hf["hidden_act"] not in ("quick_gelu", "gelu"):
        raise UserError(
            f"the CLIP config's hidden_act {hf['hidden_act']!r} is not implemented; "
            "use a tower with quick_gelu or gelu"
        )


def hf_vision_config(config: VisionConfig) -> JsonObject:
    """The config.json of a vision tower; which states are read of it is not said there."""
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **DEFAULTS,
        **{theirs: getattr(config, ours) for theirs, ours in _KEYS.items()},
    }


def vision_rules(config: VisionConfig, prefix: str = "vision_model.") -> list[Rule]:
    """Rules of a CLIP or SigLIP tower whose names begin with `prefix`; our leaves are under `vision`."""
    width, scope, embeddings = config.width, Scope(("vision",)), f"{prefix}embeddings"
    rules: list[Rule] = []
    if config.cls:
        rules.append(same(f"{embeddings}.class_embedding", scope.slab("class_embedding", width)))
    rules.append(patch_kernel(f"{embeddings}.patch_embedding.weight", config))
    if config.patch_bias:
        rules.append(vector(f"{embeddings}.patch_embedding.bias", scope.slab("patch_embedding/bias", width)))
    table = scope.slab("position_embedding", table_rows(config), width)
    rules.append(same(f"{embeddings}.position_embedding.weight", table))
    if config.pre_norm:
        rules += norm(f"{prefix}pre_layrnorm", scope, "pre_norm", width, bias=True)
    if config.post_norm:
        rules += norm(f"{prefix}post_layernorm", scope, "post_norm", width, bias=True)
    for i in range(config.depth):
        rules += layer_rules(config, f"{prefix}encoder.layers.{i}", Scope(("vision", "layers"), i))
    return rules


def layer_rules(config: VisionConfig | ClipTextConfig, name: str, layer: Scope) -> list[Rule]:
    """Rules of one layer of either tower."""
    width, split = config.width, (config.heads, config.width // config.heads)
    rules = norm(f"{name}.layer_norm1", layer, "norm1", width, bias=True)
    rules += norm(f"{name}.layer_norm2", layer, "norm2", width, bias=True)
    for k in "qkv":
        rules += dense(f"{name}.self_attn.{k}_proj", layer, k, (width,), split, bias=True)
    rules += dense(f"{name}.self_attn.out_proj", layer, "out", split, (width,), bias=True)
    rules += dense(f"{name}.mlp.fc1", layer, "fc1", (width,), (config.mlp_width,), bias=True)
    return rules + dense(f"{name}.mlp.fc2", layer, "fc2", (config.mlp_width,), (width,), bias=True)


CLIP = TowerFamily(
    name="clip",
    kinds=("clip_vision_model", "clip"),
    anchor="embeddings.class_embedding",
    prefix="vision_model.",
    post_norm="post_layernorm",
    beside=_NOT_VISION,
    read=vision_config,
    write=hf_vision_config,
    rules=vision_rules,
    pixels=PixelConfig(),
)
"""OpenAI's CLIP and what is built alike."""
