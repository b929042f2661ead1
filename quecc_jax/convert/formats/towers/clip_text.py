"""CLIP text towers: Hugging Face configs and names to ours."""

import re

from quecc_jax.config.query import ClipTextConfig
from quecc_jax.convert.formats.towers.clip import TOWER_KEYS, check_activation, layer_rules
from quecc_jax.convert.rules import Rule, Scope, matrix, norm, same
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

TEXT_ANCHOR = "embeddings.token_embedding.weight"
"""A name that every text tower has once; what stands before it is the tower's prefix."""
PROJECTION = "text_projection.weight"
"""Of a whole CLIP and of CLIPTextModelWithProjection; a bare CLIPTextModel has none."""

_DEFAULTS: JsonObject = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
"""What a key means that a CLIP text config leaves out; in the order in which keys are written."""
_KEYS = TOWER_KEYS | {"vocab_size": "vocab_size", "max_position_embeddings": "positions"}

NOT_TEXT = re.compile(r"vision_model\..*|logit_scale|visual_projection\.weight|(.*\.)?position_ids")

"""Tensors of a whole CLIP model that its text tower has no part in."""


def text_config(hf: JsonObject, projected: bool) -> ClipTextConfig:
    """The text tower that a config.json of model_type `clip` or `clip_text_model` describes.

    Args:
      hf: the config.json.
      projected: whether the checkpoint has the projection into the space shared with images.

    Raises:
      UserError: another kind of model, or an activation that is not implemented.
    """
    kind = hf.get("model_type")
    if kind == "clip":
        shared = {"projection_dim": hf.get("projection_dim", _DEFAULTS["projection_dim"])}
        hf = (hf.get("text_config") or {}) | shared
    elif kind != "clip_text_model":
        raise UserError(
            f"model_type {kind!r} is not a CLIP text tower; give a directory whose config.json "
            "says clip or clip_text_model"
        )
    hf = _DEFAULTS | hf
    check_activation(hf)
    fields = {ours: hf[theirs] for theirs, ours in _KEYS.items()}
    return ClipTextConfig(**fields, projection=hf["projection_dim"] if projected else 0)


def hf_text_config(config: ClipTextConfig) -> JsonObject:
    """The config.json of a text tower."""
    kind = "CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        **_DEFAULTS,
        **{theirs: getattr(config, ours) for theirs, ours in _KEYS.items()},
        "projection_dim": config.projection or config.width,
    }


def text_rules(config: ClipTextConfig, prefix: str = "text_model.") -> list[Rule]:
    """Rules of a text tower whose names begin with `prefix`; our leaves are under `text`."""
    width, scope = config.width, Scope(("text",))
    embeddings = f"{prefix}embeddings"
    rules = [
        same(f"{embeddings}.token_embedding.weight", scope.slab("token_embedding", config.vocab_size, width)),
        same(
            f"{embeddings}.position_embedding.weight",
            scope.slab("position_embedding", config.positions, width),
        ),
        *norm(f"{prefix}final_layer_norm", scope, "final_norm", width, bias=True),
    ]
    if config.projection:
        rules.append(matrix(PROJECTION, scope.slab("projection/kernel", width, config.projection)))
    for i in range(config.depth):
        rules += layer_rules(config, f"{prefix}encoder.layers.{i}", Scope(("text", "layers"), i))
    return rules
