"""LLaVA-Mini's models (github.com/ictnlp/LLaVA-Mini)."""

import math

from quecc_jax.config import ModelConfig
from quecc_jax.convert.formats.compressors.project import Limit, Project
from quecc_jax.convert.formats.decoder_rules import layer_rules
from quecc_jax.convert.rules import Rule, Scope, attention, norm, same
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject
from quecc_jax.models.compressors.llava_mini_config import LlavaMiniConfig

MODEL_TYPE = "llava_mini_llama"
HEADS = 8
"""Whatever the tower."""


def _settings(hf: JsonObject) -> LlavaMiniConfig | None:
    side, layers = hf.get("compressor_size"), hf.get("prefusion_layer_num", 4)
    if hf.get("model_type") != MODEL_TYPE and side is None:
        return None
    for name, value in (("compressor_size", side), ("prefusion_layer_num", layers)):
        if type(value) is not int or value < 1:
            raise UserError(
                f"config.json is of a LLaVA-Mini and has {name} {value!r}, which is to be a number from 1 on; write "
                "there what it was trained with"
            )
    assert isinstance(side, int)
    return LlavaMiniConfig(tokens=side * side, heads=HEADS, fusion_layers=layers, published=True)


def _keys(model: ModelConfig) -> JsonObject:
    compressor = model.compressor
    assert isinstance(compressor, LlavaMiniConfig)
    return {
        "compressor_size": math.isqrt(compressor.num_tokens(model.vision.grid)),
        "prefusion_layer_num": compressor.fusion_layers,
        "resolution_ratio": 1,
    }


def _limits(model: ModelConfig) -> list[Limit]:
    compressor = model.compressor
    assert isinstance(compressor, LlavaMiniConfig)
    return [
        ("model.compressor.heads", compressor.heads, (HEADS,)),
        ("model.compressor.published", compressor.published, (True,)),
        ("model.compressor.fusion_layers", compressor.fusion_layers, (max(compressor.fusion_layers, 1),)),
    ]


def _rules(model: ModelConfig, family: str, prefix: str) -> list[Rule]:
    compressor, width = model.compressor, model.vision.feature_width
    assert isinstance(compressor, LlavaMiniConfig)
    scope, name = Scope(("compressor",)), f"{prefix}compressor."
    sizes = (compressor.num_tokens(model.vision.grid), width)
    rules = [
        same(f"{name}pos_embed", scope.slab("positions", *sizes)),
        same(f"{name}query", scope.slab("queries", *sizes)),
        *attention(f"{name}attn", scope, "attention", width, compressor.heads),
        *norm(f"{name}ln_q", scope, "q_norm", width, bias=True),
        *norm(f"{name}ln_kv", scope, "kv_norm", width, bias=True),
    ]
    for i in range(compressor.fusion_layers):
        layer = Scope(("compressor", "fusion", "layers"), i)
        rules += layer_rules(model.fusion_layers, family, f"{prefix}prefusion_layers.{i}", layer)
    return rules


LLAVA_MINI = Project(
    "ictnlp/LLaVA-Mini 47da113",
    _settings,
    _keys,
    _limits,
    _rules,
    own=("compressor_size", "prefusion_layer_num", "resolution_ratio"),
    only={"resolution_ratio": (1, None)},
    model_type=MODEL_TYPE,
    architecture="LlavaMiniLlamaForCausalLM",
)
