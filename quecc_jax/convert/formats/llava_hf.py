"""LLaVA, LLaVA-NeXT and LLaVA-OneVision as transformers has them (llava-hf): settings, names, the image's token."""

import dataclasses
import re

import numpy as np

from quecc_jax.config import ModelConfig, NoneConfig, RunConfig, VisionConfig
from quecc_jax.config.presets import tower as preset
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


@dataclasses.dataclass(frozen=True)
class _Kind:
    """One of transformers' classes, and what a config.json of it means that leaves something out."""

    name: str
    """What the names of its classes begin with."""
    text: str = "llama"
    tower: JsonObject = dataclasses.field(default_factory=lambda: hf_vision_config(CLIP_L_336))
    layer: int = -2
    strategy: str = "default"
    maps: tuple[tuple[int, int], ...] = ()
    """Heights and widths of maps in pixels."""


_SIDES = range(384, 2305, 384)
_KINDS = {
    "llava": _Kind("Llava"),
    "llava_next": _Kind("LlavaNext", maps=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))),
    # Its config leaves out SigLIP's last layer, and reads the one before it.
    "llava_onevision": _Kind(
        "LlavaOnevision",
        "qwen2",
        hf_vision_config(dataclasses.replace(preset("siglip-so400m-14-384"), depth=26)),
        -1,
        "full",
        tuple((height, width) for height in _SIDES for width in _SIDES),
    ),
}
"""By model_type."""
_LIMIT = re.compile(r"anyres_max_(\d+)")
"""What OneVision's vision_aspect_ratio says."""


def is_llava_hf(hf: JsonObject) -> bool:
    """Whether a config.json is of transformers' LlavaForConditionalGeneration, LLaVA-NeXT's or LLaVA-OneVision's."""
    return hf.get("model_type") in _KINDS and "text_config" in hf


def text_config(hf: JsonObject) -> JsonObject:
    """The language model's part of a llava-hf config.json."""
    return {"model_type": _KINDS[hf["model_type"]].text} | hf["text_config"]


def tower_settings(hf: JsonObject) -> JsonObject:
    """The vision tower's part of a llava-hf config.json."""
    known = _KINDS[hf["model_type"]].tower
    return {"model_type": known["model_type"]} | (hf.get("vision_config") or known)


def class_of(vision: VisionConfig) -> str:
    """What the names of transformers' classes begin with that read such images."""
    return _KINDS[_kind(vision)].name


def _kind(vision: VisionConfig) -> str:
    return "llava_onevision" if vision.max_squares else "llava_next" if vision.tiles else "llava"


def llava_hf_model(hf: JsonObject) -> ModelConfig:
    """The model that a config.json of LlavaForConditionalGeneration, LLaVA-NeXT's or LLaVA-OneVision's class describes.

    Raises:
      UserError: a setting that is not implemented, by name.
    """
    refuse(hf, _ONLY)
    kind = _KINDS[hf["model_type"]]
    select = hf.get("vision_feature_layer", kind.layer)
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
    strategy = hf.get("vision_feature_select_strategy", kind.strategy)
    whole = strategy == "full"
    if tower.registers or not (tower.cls or whole):
        what = (
            "the registers among its features" if tower.registers else "the first patch out of its features"
        )
        raise UserError(
            f"vision_feature_select_strategy {strategy!r} in config.json leaves {what}, for the tower's model_type is "
            f"{tower_settings(hf)['model_type']}; use 'full' and a tower without registers"
        )
    if kind.maps:
        tiles = tiles_of(hf.get("image_grid_pinpoints") or kind.maps, tower)
        tower = dataclasses.replace(tower, tiles=tiles, max_squares=_max_squares(hf))
    return ModelConfig(
        vision=dataclasses.replace(tower, levels=(select,), keep_cls=whole and tower.cls),
        compressor=NoneConfig(),
        projector="mlp2x_gelu",
        decoder=decoder_config(text),
    )


def hf_llava(config: RunConfig, family: str, number: int) -> JsonObject:
    """The config.json of LlavaForConditionalGeneration, or with tiles of LLaVA-NeXT's class or, where their maps are
    shrunk, of LLaVA-OneVision's, for a run's model.

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
    vision = model.vision
    limit = {"vision_aspect_ratio": f"anyres_max_{vision.max_squares}", "video_token_index": number + 1}
    return {
        "architectures": [f"{class_of(vision)}ForConditionalGeneration"],
        "model_type": _kind(vision),
        **({"image_grid_pinpoints": pinpoints(vision)} if vision.tiles else {}),
        **(limit if vision.max_squares else {}),
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


def _max_squares(hf: JsonObject) -> int:
    """`VisionConfig.max_squares` of a config.json."""
    if hf["model_type"] != "llava_onevision":
        return 0
    limit = hf.get("vision_aspect_ratio", "anyres_max_9")
    found = _LIMIT.fullmatch(limit)
    if not found:
        raise UserError(
            f"vision_aspect_ratio {limit!r} in config.json is not implemented; use a model with anyres_max_9, or with "
            "another number"
        )
    return int(found[1])


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
