"""What a family of vision towers is for imports and exports: one value, made in the family's own file."""

import dataclasses
import re
from collections.abc import Callable

from quecc_jax.config import PixelConfig, VisionConfig
from quecc_jax.convert.rules import Arrays, Rule, Scope
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject


@dataclasses.dataclass(frozen=True)
class TowerFamily:
    """How config.json and tensors describe a family's towers."""

    name: str
    kinds: tuple[str, ...]
    """model_type of what holds a tower: of the tower alone, and of whole models with a `vision_config`."""
    anchor: str
    """A name that every tower has once; what stands before it is the tower's prefix."""
    prefix: str
    """What stands before the names in published files."""
    post_norm: str
    """Name of the final norm."""
    beside: re.Pattern[str]
    """Tensors of its files that no feature passes through, and which imports set aside for exports."""
    read: Callable[[JsonObject, int], VisionConfig]
    """The tower of a config.json, given the select layer; raises UserError for what is not implemented, by name."""
    write: Callable[[VisionConfig], JsonObject]
    """The config.json of a tower that the family can express, at least."""
    rules: Callable[[VisionConfig, str], list[Rule]]
    """Rules of a tower whose names begin with a prefix; our leaves are under `vision`."""
    pixels: PixelConfig | None = None
    """How images are made where no image processor lies beside the weights; None where the file has to say."""
    resizes: bool = False
    """Its positions are interpolated, so that images may have another size than config.json says."""


def check_images(hf: JsonObject, whom: str) -> None:
    """Raises UserError where a tower's images or patches are not square RGB."""
    if hf["num_channels"] != 3 or not all(isinstance(hf[k], int) for k in ("image_size", "patch_size")):
        raise UserError(
            f"the {whom} config's images or patches are not square RGB (num_channels {hf['num_channels']}, image_size "
            f"{hf['image_size']}, patch_size {hf['patch_size']}); use another tower"
        )


def patch_kernel(name: str, config: VisionConfig) -> Rule:
    """The rule of a convolution over patches, which is a matrix here."""
    width, patch = config.width, config.patch_size

    def rows(theirs: Arrays) -> Arrays:
        return (theirs[0].transpose(2, 3, 1, 0).reshape(-1, width),)

    def kernels(ours: Arrays) -> Arrays:
        return (ours[0].reshape(patch, patch, 3, width).transpose(3, 2, 0, 1),)

    slab = Scope(("vision",)).slab("patch_embedding/kernel", patch * patch * 3, width)
    return Rule((name,), ((width, 3, patch, patch),), (slab,), rows, kernels)


def table_rows(config: VisionConfig) -> int:
    """Rows of the learned positions."""
    return config.cls + (config.position_grid or config.grid) ** 2
