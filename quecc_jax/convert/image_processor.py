"""Image processors beside weights: how images become a tower's squares, in transformers' settings and in ours."""

import dataclasses
import re
import reprlib
from typing import Any, Literal

import numpy as np

from quecc_jax.config import PixelConfig, RunConfig, VisionConfig
from quecc_jax.convert.formats.towers.families import at_size
from quecc_jax.convert.formats.towers.family import TowerFamily
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

_RESAMPLE: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_UNCROPPED = ("Siglip", "LlavaOnevision")
"""Processors that crop only where they are told to."""
_KINDS = ("CLIP", "Bit", "Siglip", "Llava", "LlavaNext", "LlavaOnevision")
"""Processors that do what their settings say; others ignore some, or do more."""
_OWN = {"clip": "CLIP", "siglip": "Siglip", "dinov2": "Bit"}
"""The processor of a family of towers, where a file names none."""
_DEFAULT_SIDE = 224
"""Of sizes that a file leaves out."""


def processor_settings(vision: VisionConfig) -> JsonObject:
    """The preprocessor_config.json of a tower's own images, not padded."""
    how, side = vision.pixels, vision.image_size
    number = next(number for number, name in _RESAMPLE.items() if name == how.resample)
    short = how.resized or side
    shared = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }
    if how.fit == "stretch" and short == side:
        # Other classes, which take these settings too, crop unless they are told not to.
        return {
            "image_processor_type": "SiglipImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": number,
            "do_center_crop": False,
            "crop_size": {"height": side, "width": side},
            **shared,
        }
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": short, "width": short} if how.fit == "stretch" else {"shortest_edge": short},
        "resample": number,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        **shared,
    }


def image_settings(config: RunConfig, name: str, pinpoints: list[list[int]] | None) -> JsonObject:
    """The preprocessor_config.json that prepares images as this run does: as the tower's own, padded or in tiles.

    Args:
      config: the run.
      name: what the names of the model's classes begin with, see `llava_hf.class_of`.
      pinpoints: heights and widths of maps; None without tiles.
    """
    settings = processor_settings(config.model.vision)
    if pinpoints is not None:
        own = {"image_processor_type": f"{name}ImageProcessor", "image_grid_pinpoints": pinpoints}
        return settings | own | {"do_pad": True}
    if config.data.image_aspect == "pad":
        return settings | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    return settings


def with_pixels(tower: VisionConfig, family: TowerFamily, settings: JsonObject, where: str) -> VisionConfig:
    """The tower with images made as the processor beside it makes them.

    Args:
      tower: of its config.json.
      family: of the tower.
      settings: of the image processor; empty where there is none.
      where: the weights that it lies beside, for messages.

    Raises:
      UserError: there is none and the family's towers differ in it; or it makes them in a way that is not
        implemented, by setting.
    """
    if not settings:
        if family.pixels is None:
            raise UserError(
                f"{where} has no preprocessor_config.json, and {family.name} towers differ in how images are made; put "
                "the one that was published with it there"
            )
        return dataclasses.replace(tower, pixels=family.pixels)
    kind = _kind(settings, family, where)
    # A tower of other images can only mean its own where the file says nothing of sizes.
    left = _DEFAULT_SIDE if family.resizes or {"size", "crop_size"} & settings.keys() else tower.image_size
    default = {"height": left, "width": left}
    short = default if kind.startswith(_UNCROPPED) else {"shortest_edge": left}
    cropped = settings.get("do_center_crop")
    if cropped is None:
        cropped = not kind.startswith(_UNCROPPED)
    defaults: JsonObject = {"size": short, "crop_size": default} if cropped else {"size": short}
    settings = defaults | settings
    side, size, crop = tower.image_size, settings["size"], settings.get("crop_size")
    stretched = isinstance(size, dict) and "height" in size
    resized = _side(size)
    cut = _side(crop) if cropped else resized
    if family.resizes and cut:
        tower, side = at_size(tower, cut), cut
    wanted = {
        "size": resized >= side,
        "crop_size": cut == side or not cropped,
        "do_center_crop": (cropped or (stretched and resized == side))
        and (settings.get("do_center_crop", cropped) is not None or not cropped),
        "resample": settings.get("resample", 3) in _RESAMPLE,
        "rescale_factor": round(settings.get("rescale_factor", 1 / 255) * 255, 4) == 1,
        # What null means changed between transformers' versions.
        **{name: settings.get(name, True) is True for name in ("do_resize", "do_rescale", "do_normalize")},
        "pad_size": settings.get("pad_size") is None,
        **{
            name: np.shape(settings.get(name, () if family.pixels is None else family.pixels.mean)) == (3,)
            for name in ("image_mean", "image_std")
        },
    }
    for name, holds in wanted.items():
        if not holds:
            raise UserError(
                f"the image processor of {where} has {name} {settings.get(name)!r}, which is not implemented for a "
                f"tower of {side} pixels; use a model with the tower's own"
            )
    given = family.pixels or PixelConfig()
    pixels = PixelConfig(
        _constants(settings.get("image_mean"), given.mean),
        _constants(settings.get("image_std"), given.std),
        _RESAMPLE[settings.get("resample", 3)],
        "stretch" if stretched else "crop",
        resized if resized != side else 0,
    )
    return dataclasses.replace(tower, pixels=pixels)


def check_constants(tower: VisionConfig, settings: JsonObject, where: str) -> None:
    """Raises UserError where a processor beside a whole model normalises images in another way than its tower's."""
    for name, ours in (("image_mean", tower.pixels.mean), ("image_std", tower.pixels.std)):
        theirs = settings.get(name)
        if theirs is not None and _constants(theirs, ours) != ours:
            raise UserError(
                f"the image processor of {where} has {name} {theirs}, but its tower's has {ours}; give the tower that "
                "belongs to the model"
            )


def check_maps(settings: JsonObject, maps: list[list[int]], where: str) -> None:
    """Raises UserError where a processor cuts images for other maps than config.json puts tokens together for.

    Args:
      settings: of the processor.
      maps: heights and widths that config.json says.
      where: the weights that it lies beside, for messages.
    """
    theirs = settings.get("image_grid_pinpoints")
    if theirs is not None and sorted(map(str, theirs)) != sorted(map(str, maps)):
        raise UserError(
            f"the image processor of {where} has image_grid_pinpoints {reprlib.repr(theirs)}, but its config.json "
            f"{reprlib.repr(maps)}; put the files there that were published together"
        )


def pads(settings: JsonObject) -> bool:
    """Whether a processor pads images to a square before all else; CLIP's has no such setting."""
    named = str(settings.get("image_processor_type")).startswith("Llava")
    return named and bool(settings.get("do_pad")) and "image_grid_pinpoints" not in settings


def _kind(settings: JsonObject, family: TowerFamily, where: str) -> str:
    """The kind of a processor, without what its class is called behind it.

    Raises:
      UserError: one that is not implemented.
    """
    named = settings.get("image_processor_type", settings.get("feature_extractor_type"))
    if named is None:
        return _OWN[family.name]
    kind = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", str(named))
    if kind not in _KINDS:
        raise UserError(
            f"the image processor of {where} is a {named}, which is not implemented; give the tower as it was "
            f"published, with a processor of {', '.join(_KINDS)}"
        )
    return kind


def _side(size: Any) -> int:
    """The side of a square, or the length of a shorter side; 0 where it is neither."""
    if isinstance(size, dict):
        square = size.keys() in ({"shortest_edge"}, {"height", "width"}) and len({*size.values()}) == 1
        size = next(iter(size.values())) if square else 0
    return size if type(size) is int else 0


def _constants(theirs: Any, known: tuple[float, ...]) -> tuple[float, ...]:
    """Three numbers of a file; the known ones where these are they, rounded, or are not said."""
    if theirs is None or np.allclose(theirs, known, rtol=0, atol=1e-6):
        return known
    return tuple(float(part) for part in theirs)
