"""CLIP vision towers: Hugging Face configs and names to ours."""

import re

from quecc_jax.config import VisionConfig
from quecc_jax.config.query import ClipTextConfig
from quecc_jax.convert.rules import Arrays, Rule, Scope, dense, norm, same
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

LEVELS = (12, 16, 22, 23)
"""Hidden states that the original's multi-level features always come from."""

ANCHOR = "embeddings.class_embedding"
"""A name that every tower has once; what stands before it is the tower's prefix."""

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

NOT_VISION = re.compile(r"text_model\..*|logit_scale|(text|visual)_projection\.weight")
"""Tensors of a whole CLIP model that its vision tower has no part in: the text encoder, both projections into
the common space, and the temperature."""


def vision_config(hf: JsonObject, select_layer: int = -2) -> VisionConfig:
    """The tower that a config.json of model_type `clip_vision_model` or `clip` describes.

    The multi-level features are the original's states 12, 16, 22 and 23; a tower that has not so
    many layers gets the select layer alone.

    Raises:
      UserError: another kind of model, or a setting that changes the mathematics in a way that is
        not implemented, by name.
    """
    kind = hf.get("model_type")
    if kind == "clip":
        hf = hf.get("vision_config") or {}
    elif kind != "clip_vision_model":
        raise UserError(
            f"model_type {kind!r} is not a CLIP vision tower; give a directory whose config.json "
            "says clip_vision_model or clip"
        )
    hf = DEFAULTS | hf
    if hf["num_channels"] != 3 or not all(isinstance(hf[k], int) for k in ("image_size", "patch_size")):
        raise UserError(
            "the CLIP config's images or patches are not square RGB (num_channels "
            f"{hf['num_channels']}, image_size {hf['image_size']}, patch_size "
            f"{hf['patch_size']}); use another tower"
        )
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
    """Rules of a tower whose names begin with `prefix`; our leaves are under `vision`."""
    width, patch = config.width, config.patch_size
    scope = Scope(("vision",))
    embeddings = f"{prefix}embeddings"

    def rows(theirs: Arrays) -> Arrays:
        return (theirs[0].transpose(2, 3, 1, 0).reshape(-1, width),)

    def kernels(ours: Arrays) -> Arrays:
        return (ours[0].reshape(patch, patch, 3, width).transpose(3, 2, 0, 1),)

    rules = [
        same(f"{embeddings}.class_embedding", scope.slab("class_embedding", width)),
        Rule(
            (f"{embeddings}.patch_embedding.weight",),
            ((width, 3, patch, patch),),
            (scope.slab("patch_embedding/kernel", patch * patch * 3, width),),
            rows,
            kernels,
        ),
        same(
            f"{embeddings}.position_embedding.weight",
            scope.slab("position_embedding", config.patches + 1, width),
        ),
        *norm(f"{prefix}pre_layrnorm", scope, "pre_norm", width, bias=True),
    ]
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
