"""Which compressors there are. Imports neither jax nor flax."""

import dataclasses
import difflib

from quecc_jax.errors import UserError
from quecc_jax.models.compressors.avgpool_config import AveragePoolConfig
from quecc_jax.models.compressors.base_config import CompressorConfig
from quecc_jax.models.compressors.conv_config import ConvolutionConfig
from quecc_jax.models.compressors.llava_mini_config import LlavaMiniConfig
from quecc_jax.models.compressors.m3_config import M3Config
from quecc_jax.models.compressors.mqt_config import MqtConfig
from quecc_jax.models.compressors.none_config import NoneConfig
from quecc_jax.models.compressors.prumerge_config import PruMergeConfig
from quecc_jax.models.compressors.prumerge_plus_config import PruMergePlusConfig
from quecc_jax.models.compressors.quecc_config import QueccConfig
from quecc_jax.models.compressors.quecc_plus_config import QueccPlusConfig
from quecc_jax.models.compressors.random_config import RandomConfig
from quecc_jax.models.compressors.resampler_config import ResamplerConfig
from quecc_jax.models.compressors.tokenpacker_config import TokenPackerConfig

_HERE = "quecc_jax.models.compressors"

REGISTRY: dict[type[CompressorConfig], str] = {
    QueccConfig: f"{_HERE}.quecc",
    QueccPlusConfig: f"{_HERE}.quecc_plus",
    TokenPackerConfig: f"{_HERE}.tokenpacker",
    M3Config: f"{_HERE}.m3",
    MqtConfig: f"{_HERE}.mqt",
    AveragePoolConfig: f"{_HERE}.avgpool",
    ConvolutionConfig: f"{_HERE}.conv",
    ResamplerConfig: f"{_HERE}.resampler",
    RandomConfig: f"{_HERE}.random",
    PruMergeConfig: f"{_HERE}.prumerge",
    PruMergePlusConfig: f"{_HERE}.prumerge_plus",
    LlavaMiniConfig: f"{_HERE}.llava_mini",
    NoneConfig: f"{_HERE}.none",
}
"""Settings, and the module whose `build(settings, sizes, dtype, name)` makes the Flax module of them."""


def names() -> list[str]:
    """Every compressor's name."""
    return [kind.name for kind in REGISTRY]


def reads_question(name: str) -> bool:
    """Whether the compressor of that name is one whose tokens depend on the question."""
    return config_class(name)().reads_question


def config_class(name: str) -> type[CompressorConfig]:
    """The settings of the compressor of that name.

    Raises:
      UserError: there is no such compressor; the message names the nearest.
    """
    for kind in REGISTRY:
        if kind.name == name:
            return kind
    close = difflib.get_close_matches(str(name), names(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names())}"
    raise UserError(f"{name!r} is not a compressor; {hint}")


def named(name: str, **settings: object) -> CompressorConfig:
    """The compressor of that name.

    Raises:
      UserError: there is no such compressor, or it has no such setting.
    """
    return exchanged(config_class(name)(), name, **settings)


def exchanged(config: CompressorConfig, name: str = "", **settings: object) -> CompressorConfig:
    """Another compressor in place of `config`, or the same where `name` is empty: settings that both have are
    kept, and those given replace them.

    Raises:
      UserError: there is no such compressor, it has no such setting, or it makes one V only, or V in another
        way, where `config` chooses `elastic` or `tokens`.
    """
    kind = config_class(name) if name else type(config)
    known = {f.name for f in dataclasses.fields(kind)}
    for key in settings:
        if key not in known:
            raise UserError(
                f"{key} is not a setting of the compressor {kind.name}; known: {', '.join(sorted(known))}"
            )
    kept = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for key in ("elastic", "tokens"):
        if kept.get(key) and key not in known:
            raise UserError(
                f"{kind.name} has no {key}, but {config.name} was given {kept[key]}; leave it out before {kind.name} "
                "takes its place"
            )
    kept = {key: value for key, value in kept.items() if key in known and key != "name"}
    return kind(**{**kept, **settings})  # type: ignore[arg-type]
