"""LLaVA and LLaVA-NeXT as transformers has them (llava-hf): settings, names and the image's own token."""

import dataclasses

import numpy as np

from quecc_jax.config import ModelConfig, NoneConfig, RunConfig
from quecc_jax.convert.formats.families import decoder_config, hf_decoder_config
from quecc_jax.convert.formats.family_keys import Allowed, refuse
from quecc_jax.convert.formats.llava import NEWLINE, pinpoints, projector_rules, tiles_of
from quecc_jax.convert.formats.towers.clip import CLIP_L_336
from quecc_jax.convert.formats.towers.families import hf_vision_config, vision_config
from quecc_jax.convert.rules import Arrays, Rule
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

IMAGE = "<image>"
"""The token that stands for an image."""
VOCABULARY = (("decoder", "embedding"), ("decoder", "head"))
"""Our leaves with a row, or column, for each token."""

_ONLY: Allowed = {
    "vision_feature_select_strategy": ("default", "full"),
    "projector_hidden_act": ("gelu",),
    "multimodal_projector_bias": (True,),
    "use_image_newline_parameter": (True,),
}
"""Settings that change what the model computes, with the values that are implemented."""
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Sizes (height, width) of LLaVA-NeXT's maps where a config.json of transformers does not say them."""


def is_llava_hf(hf: JsonObject) -> bool:
    """Whether a config.json is of transformers' LlavaForConditionalGeneration, or of LLaVA-NeXT's."""
    return hf.get("model_type") in ("llava", "llava_next") and "text_config" in hf


def text_config(hf: JsonObject) -> JsonObject:
    """The language model's part of a llava-hf config.json, which is LLaMA's where it does not say."""
    return {"model_type": "llama"} | hf["text_config"]


def tower_settings(hf: JsonObject) -> JsonObject:
    """The vision tower's part of a llava-hf config.json, which is CLIP-L's where there is none."""
    return {"model_type": "clip_vision_model"} | (hf.get("vision_config") or hf_vision_config(CLIP_L_336))


def llava_hf_model(hf: JsonObject) -> ModelConfig:
    """The model that a config.json of LlavaForConditionalGeneration or LLaVA-NeXT's class describes.

    Raises:
      UserError: a setting that is not implemented, by name.
    """
    refuse(hf, _ONLY)
    select = hf.get("vision_feature_layer", -2)
    # One layer in a list is that layer; transformers concatenates the states of several.
    select = select[0] if isinstance(select, list) and len(select) == 1 else select
    if not isinstance(select, int):
        raise UserError(
            f"vision_feature_layer {select!r} in config.json is not implemented; "
            "use a model that reads a single layer"
        )
    text = text_config(hf)
    if hf.get("tie_word_embeddings"):
        text["tie_word_embeddings"] = True
    tower = vision_config(tower_settings(hf), select)
    strategy = hf.get("vision_feature_select_strategy")
    whole = strategy == "full"
    if tower.registers or not (tower.cls or whole):
        what = (
            "the registers among its features" if tower.registers else "the first patch out of its features"
        )
        raise UserError(
            f"vision_feature_select_strategy {strategy!r} in config.json leaves {what}, for the tower's model_type is "
            f"{tower_settings(hf)['model_type']}; use 'full' and a tower without registers"
        )
    if hf["model_type"] == "llava_next":
        pinpoints_hf = hf.get("image_grid_pinpoints") or _PINPOINTS
        tower = dataclasses.replace(tower, tiles=tiles_of(pinpoints_hf, tower))
    return ModelConfig(
        vision=dataclasses.replace(tower, levels=(select,), keep_cls=whole and tower.cls),
        compressor=NoneConfig(),
        projector="mlp2x_gelu",
        decoder=decoder_config(text),
    )


def hf_llava(config: RunConfig, family: str, number: int) -> JsonObject:
    """The config.json of LlavaForConditionalGeneration, or with tiles of LLaVA-NeXT's class, for a run's
    model.

    Args:
      config: the run.
      family: model_type of its decoder.
      number: id of the token that stands for an image; the vocabulary grows to hold it.

    Raises:
      UserError: transformers' class cannot express the model, by setting.
    """
    model = config.model
    for name, value, only in (
        ("compressor.name", model.compressor.name, "none"),
        ("projector", model.projector, "mlp2x_gelu"),
        ("vision.scales", model.vision.scales, (1,)),
        ("vision.registers", model.vision.registers, 0),
    ):
        if value != only:
            raise UserError(
                f"llava-hf has no model.{name} {value!r}, only {only!r}; export in the original format"
            )
    tiles = model.vision.tiles
    return {
        "architectures": [f"Llava{'Next' if tiles else ''}ForConditionalGeneration"],
        "model_type": "llava_next" if tiles else "llava",
        **({"image_grid_pinpoints": pinpoints(model.vision)} if tiles else {}),
        "text_config": hf_decoder_config(model.decoder, family, config.data.max_length)
        | {"vocab_size": max(model.decoder.vocab_size, number + 1)},
        "vision_config": hf_vision_config(model.vision),
        "vision_feature_layer": model.vision.select_layer,
        "vision_feature_select_strategy": "full"
        if model.vision.keep_cls or not model.vision.cls
        else "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "image_token_index": number,
        "image_seq_length": model.visual_tokens,
        "tie_word_embeddings": model.decoder.tie_embeddings,
    }


def llava_hf_adapter_rules(model: ModelConfig, prefix: str = "multi_modal_projector.") -> list[Rule]:
    """Rules of the projector under llava-hf's names."""
    newline = prefix.removesuffix("multi_modal_projector.") + NEWLINE
    return projector_rules(model, lambda i: f"{prefix}linear_{i + 1}", newline)


def with_rows(rules: list[Rule], rows: int) -> list[Rule]:
    """Rules for files whose vocabulary has `rows` rows, of which ours are the first.

    A new row is the mean of all others, so that its logit, the mean of all others', is never the largest.
    """
    return [_longer(rule, rows) if rule.ours[0].path in VOCABULARY else rule for rule in rules]


def _longer(rule: Rule, rows: int) -> Rule:
    ours = rule.shapes[0][0]

    def cut(theirs: Arrays) -> Arrays:
        return rule.to_ours(tuple(array[:ours] for array in theirs))

    def extend(slabs: Arrays) -> Arrays:
        return tuple(_extended(array, rows) for array in rule.to_theirs(slabs))

    shapes = tuple((rows, *shape[1:]) for shape in rule.shapes)
    return dataclasses.replace(rule, shapes=shapes, to_ours=cut, to_theirs=extend)


def _extended(array: np.ndarray, rows: int) -> np.ndarray:
    mean = np.mean(array, axis=0, dtype=np.float32).astype(array.dtype)
    return np.concatenate([array, np.broadcast_to(mean, (rows - len(array), *mean.shape))])
