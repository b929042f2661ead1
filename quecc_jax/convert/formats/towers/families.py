"""Which family a vision tower is of: CLIP, SigLIP or DINOv2."""

import dataclasses

from quecc_jax.config import PixelConfig, VisionConfig
from quecc_jax.convert.formats.towers.clip import CLIP
from quecc_jax.convert.formats.towers.dinov2 import DINOV2
from quecc_jax.convert.formats.towers.family import TowerFamily
from quecc_jax.convert.formats.towers.siglip import SIGLIP
from quecc_jax.convert.rules import Rule
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

FAMILIES = (CLIP, SIGLIP, DINOV2)
KINDS = tuple(kind for family in FAMILIES for kind in family.kinds)
"""model_type of everything that a tower is read of."""


def tower_family(hf: JsonObject) -> TowerFamily:
    """The family that a config.json's model_type names.

    Raises:
      UserError: it is none of them, or SigLIP 2 of any resolution.
    """
    kind = hf.get("model_type")
    if str(kind).startswith("siglip2"):
        raise UserError(
            f"model_type {kind!r} in config.json is SigLIP 2 of any resolution (NaFlex), which is not implemented; use "
            "a SigLIP 2 of one resolution, such as siglip2-so400m-patch16-384, whose model_type is siglip"
        )
    for family in FAMILIES:
        if kind in family.kinds:
            return family
    raise UserError(
        f"model_type {kind!r} is not a vision tower; give a directory whose config.json says {', '.join(KINDS)}"
    )


def vision_config(hf: JsonObject, select_layer: int = -2) -> VisionConfig:
    """The tower that a config.json describes.

    Raises:
      UserError: another kind of model, or a setting that is not implemented, by name.
    """
    return tower_family(hf).read(hf, select_layer)


def family_of(config: VisionConfig) -> TowerFamily:
    """The first family that can express a tower.

    Raises:
      UserError: none can.
    """
    for family in FAMILIES:
        try:
            again = family.read(family.write(config), config.select_layer)
        except UserError:
            continue
        if _itself(at_size(again, config.image_size)) == _itself(config):
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise UserError(
        f"no family of {names} can express the vision tower of this run; change its settings to those of one of them"
    )


def at_size(tower: VisionConfig, side: int) -> VisionConfig:
    """The tower with images of another size: the learned positions are interpolated where the grid is another, as
    transformers does it for DINOv2, with antialiasing where there are registers."""
    stored = tower.position_grid or tower.grid
    other = side // tower.patch_size != stored
    return dataclasses.replace(
        tower,
        image_size=side,
        drop_border=side % tower.patch_size != 0,
        position_grid=stored if other else 0,
        antialias_positions=other and tower.registers > 0,
    )


def _itself(config: VisionConfig) -> VisionConfig:
    """A tower without what is read of it, and how its images are made: neither is in its config.json."""
    return dataclasses.replace(
        config,
        pixels=PixelConfig(),
        select_layer=-1,
        levels=(),
        post_norm=True,
        scales=(1,),
        tiles=(),
        max_squares=0,
        keep_cls=False,
        keep_attention=False,
    )


def hf_vision_config(config: VisionConfig) -> JsonObject:
    """The config.json of a vision tower; which states are read of it is not said there."""
    return family_of(config).write(config)


def vision_rules(config: VisionConfig, before: str = "") -> list[Rule]:
    """Rules of a tower whose names begin with `before` and the family's usual prefix."""
    family = family_of(config)
    return family.rules(config, before + family.prefix)
