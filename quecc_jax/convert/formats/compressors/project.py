"""What sets a project's models apart whose code is LLaVA's with a compressor of its own."""

import dataclasses
from collections.abc import Callable, Mapping

from quecc_jax.config import CompressorConfig, DecoderConfig, ModelConfig, VisionConfig
from quecc_jax.convert.rules import Rule, Scope, dense
from quecc_jax.json_text import JsonObject

Limit = tuple[str, object, tuple[object, ...]]
"""A setting, its value, and those that a project's code can have."""
GRID = 24
"""Patches along one side of an image, where a project's code writes them out."""
PROJECTOR = "mm_projector."
"""LLaVA's projector, and in it what stands in its place."""


@dataclasses.dataclass(frozen=True)
class Project:
    """How a project's config.json tells its compressor, what it calls the tensors, and what it cannot have."""

    code: str
    """Its repository, and the commit that was read."""
    settings: Callable[[JsonObject], CompressorConfig | None]
    """The compressor that a config.json describes; None where it is not of this project. Raises UserError."""
    keys: Callable[[ModelConfig], JsonObject]
    """What an export adds to LLaVA's config.json."""
    limits: Callable[[ModelConfig], list[Limit]]
    """Of a model with this compressor."""
    rules: Callable[[ModelConfig, str, str], list[Rule]]
    """Rules of a model's compressor, and of its projector where that is part of it: (model, decoder's family, what
    stands before the name of the projector)."""
    own: tuple[str, ...] = ()
    """Keys of config.json that are its own and do not begin with mm_, as LLaVA's do."""
    multi: bool = False
    """It reads the states `clip.LEVELS` beside the select layer's, whatever config.json says."""
    projector: str = ""
    """The projector that is part of it, as our setting; empty where LLaVA's stands behind it."""
    first: int = 0
    """Number of LLaVA's first linear layer in `mm_projector`, behind what stands before it."""
    grid: int = 0
    """Patches along one side of the only images that its code takes; 0 for any."""
    tiles: bool = False
    """Its code has any-resolution images."""
    scales: bool = False
    """Its code has S2's features."""
    only: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)
    """Keys of config.json beside LLaVA's that change what it computes, with the values that are implemented."""
    sizes: Callable[[DecoderConfig, VisionConfig], JsonObject] = lambda decoder, tower: {}
    """Keys of config.json that follow from the rest, and their values."""
    decoders: tuple[str, ...] = ("llama",)
    """Families that its code puts it in front of; empty for all that LLaVA's has."""
    model_type: str = ""
    """Its own, which an export writes; empty for LLaVA's."""
    architecture: str = ""
    """The same of its class."""
    stage_one: str = PROJECTOR
    """Its stage 1 output has this name, but for the dot."""


def mlp_rules(model: ModelConfig, name: str) -> list[Rule]:
    """Rules of the projector mlp2x_gelu that is part of a compressor, under `name`0 and `name`2."""
    scope, wide = Scope(("projector",)), (model.decoder.width,)
    return [
        *dense(f"{name}0", scope, "fc1", (model.vision.feature_width,), wide, bias=True),
        *dense(f"{name}2", scope, "fc2", wide, wide, bias=True),
    ]


def one_v(compressor: CompressorConfig) -> Limit:
    """The limit of a compressor that makes one V."""
    return ("model.compressor.elastic", compressor.elastic, ((),))
