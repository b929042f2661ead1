"""DINOv2's towers, with registers or without: Hugging Face configs and names to ours."""

import re

from quecc_jax.config import VisionConfig
from quecc_jax.config.presets import feature_levels
from quecc_jax.convert.formats.family_keys import Allowed, refuse
from quecc_jax.convert.formats.towers.family import TowerFamily, check_images, patch_kernel, table_rows
from quecc_jax.convert.rules import Rule, Scope, dense, matrix, norm, same, vector
from quecc_jax.json_text import JsonObject

_DEFAULTS: JsonObject = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
"""What a key means that a DINOv2 config leaves out; in the order in which keys are written."""
_KEYS = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "heads",
    "patch_size": "patch_size",
    "layer_norm_eps": "norm_eps",
}
_ONLY: Allowed = {
    "hidden_act": ("gelu",),
    "qkv_bias": (True,),
    "use_swiglu_ffn": (True, False),
    # Of files with registers; transformers reads neither.
    "interpolate_antialias": (True,),
    "interpolate_offset": (0.0,),
}
_REGISTERS = "dinov2_with_registers"


def _read(hf: JsonObject, select_layer: int) -> VisionConfig:
    registers = hf.get("num_register_tokens", 4) if hf.get("model_type") == _REGISTERS else 0
    hf = _DEFAULTS | hf
    check_images(hf, "DINOv2")
    refuse(hf, _ONLY, " for DINOv2")
    return VisionConfig(
        **{ours: hf[theirs] for theirs, ours in _KEYS.items()},
        mlp_width=_mlp_width(hf["hidden_size"], hf["mlp_ratio"], hf["use_swiglu_ffn"]),
        activation="swiglu" if hf["use_swiglu_ffn"] else "gelu",
        image_size=hf["image_size"],
        drop_border=hf["image_size"] % hf["patch_size"] != 0,
        registers=registers,
        patch_bias=True,
        pre_norm=False,
        layer_scale=True,
        post_norm=True,
        select_layer=select_layer,
        levels=feature_levels(hf["num_hidden_layers"], select_layer),
    )


def _mlp_width(width: int, ratio: int, swiglu: bool) -> int:
    """Two thirds for SwiGLU, which has a third matrix, rounded up to a multiple of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


def _write(config: VisionConfig) -> JsonObject:
    swiglu = config.activation == "swiglu"
    ratio = round(config.mlp_width / config.width * (1.5 if swiglu else 1))
    stored = config.position_grid * config.patch_size
    with_registers = config.registers > 0
    return {
        "architectures": [f"Dinov2{'WithRegisters' * with_registers}Model"],
        "model_type": _REGISTERS if with_registers else "dinov2",
        **_DEFAULTS,
        **{theirs: getattr(config, ours) for theirs, ours in _KEYS.items()},
        "mlp_ratio": ratio,
        "image_size": stored or config.image_size,
        "use_swiglu_ffn": swiglu,
        # Of no use outside of pretraining; with registers transformers expects it all the same.
        **({"num_register_tokens": config.registers} if with_registers else {"use_mask_token": False}),
    }


def _rules(config: VisionConfig, prefix: str) -> list[Rule]:
    width, scope, embeddings = config.width, Scope(("vision",)), f"{prefix}embeddings"

    def table(name: str, own: str, *shape: int) -> Rule:
        """A parameter that they keep under axes of one."""
        lead = (1,) * (3 - len(shape))
        return Rule(
            (f"{embeddings}.{name}",),
            ((*lead, *shape),),
            (scope.slab(own, *shape),),
            lambda theirs: (theirs[0].reshape(shape),),
            lambda ours: (ours[0].reshape(*lead, *shape),),
        )

    rules = [
        table("cls_token", "class_embedding", width),
        table("position_embeddings", "position_embedding", table_rows(config), width),
        patch_kernel(f"{embeddings}.patch_embeddings.projection.weight", config),
        vector(f"{embeddings}.patch_embeddings.projection.bias", scope.slab("patch_embedding/bias", width)),
    ]
    if config.registers:
        rules.append(table("register_tokens", "registers", config.registers, width))
    if config.post_norm:
        rules += norm(f"{prefix}layernorm", scope, "post_norm", width, bias=True)
    for i in range(config.depth):
        rules += _layer_rules(config, f"{prefix}encoder.layer.{i}", Scope(("vision", "layers"), i))
    return rules


def _layer_rules(config: VisionConfig, name: str, layer: Scope) -> list[Rule]:
    width, split = config.width, (config.heads, config.width // config.heads)
    wide, narrow = (width,), (config.mlp_width,)
    rules = [
        *norm(f"{name}.norm1", layer, "norm1", width, bias=True),
        *norm(f"{name}.norm2", layer, "norm2", width, bias=True),
        same(f"{name}.layer_scale1.lambda1", layer.slab("scale1", width)),
        same(f"{name}.layer_scale2.lambda1", layer.slab("scale2", width)),
        *dense(f"{name}.attention.output.dense", layer, "out", split, wide, bias=True),
    ]
    for own, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        rules += dense(f"{name}.attention.attention.{theirs}", layer, own, wide, split, bias=True)
    if config.activation == "swiglu":
        return [
            *rules,
            matrix(
                f"{name}.mlp.weights_in.weight",
                *(layer.slab(f"{k}/kernel", width, *narrow) for k in ("gate", "fc1")),
            ),
            vector(
                f"{name}.mlp.weights_in.bias", *(layer.slab(f"{k}/bias", *narrow) for k in ("gate", "fc1"))
            ),
            *dense(f"{name}.mlp.weights_out", layer, "fc2", narrow, wide, bias=True),
        ]
    rules += dense(f"{name}.mlp.fc1", layer, "fc1", wide, narrow, bias=True)
    return rules + dense(f"{name}.mlp.fc2", layer, "fc2", narrow, wide, bias=True)


DINOV2 = TowerFamily(
    name="dinov2",
    kinds=("dinov2", _REGISTERS),
    anchor="embeddings.cls_token",
    prefix="",
    post_norm="layernorm",
    # What stands for hidden patches in pretraining, and a classifier.
    beside=re.compile(r"(.*\.)?embeddings\.mask_token|classifier\.(weight|bias)"),
    read=_read,
    write=_write,
    rules=_rules,
    resizes=True,
)
"""DINOv2 in transformers' files, whose positions are interpolated to the size that their processor makes."""
