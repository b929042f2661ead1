"""Which projects publish LLaVA with a compressor of their own."""

from collections.abc import Iterable

from quecc_jax.config import CompressorConfig
from quecc_jax.convert.formats.compressors.llava_mini import LLAVA_MINI
from quecc_jax.convert.formats.compressors.m3 import M3
from quecc_jax.convert.formats.compressors.mqt import MQT
from quecc_jax.convert.formats.compressors.project import Project
from quecc_jax.convert.formats.compressors.quecc import QUECC
from quecc_jax.convert.formats.compressors.tokenpacker import TOKENPACKER
from quecc_jax.errors import UserError
from quecc_jax.json_text import JsonObject

PROJECTS = {"quecc": QUECC, "tokenpacker": TOKENPACKER, "mqt": MQT, "m3": M3, "llava_mini": LLAVA_MINI}
"""By the compressor's name."""

PROJECTORS = tuple(dict.fromkeys(one.stage_one for one in PROJECTS.values()))
"""Parts of names that every model of theirs has, and no other."""
_BESIDE = (*PROJECTORS, "compressor.", "prefusion_layers.", "image_newline")
"""Beginnings of the names of what a stage 1 trains."""
KEYS = tuple(key for one in PROJECTS.values() for key in one.own)
"""Keys of a config.json, beside those that begin with mm_, that say what a stage 1 output is."""


def told(hf: JsonObject) -> tuple[Project | None, CompressorConfig | None]:
    """The project that a config.json is of, and the compressor that it describes; (None, None) of LLaVA's own.

    Raises:
      UserError: it is of two projects, or a setting that is not implemented, by name.
    """
    found = {name: made for name, one in PROJECTS.items() if (made := one.settings(hf)) is not None}
    if len(found) > 1:
        raise UserError(
            f"config.json has keys of {' and '.join(found)}, of which a model has one; remove those of the other"
        )
    for name, made in found.items():
        return PROJECTS[name], made
    return None, None


def is_beside(name: str, prefix: str) -> bool:
    """Whether a tensor's name is of a projector or compressor, where names of a model begin with `prefix`."""
    return name.removeprefix(prefix).startswith(_BESIDE)


def holds_projector(names: Iterable[str]) -> bool:
    """Whether some of a checkpoint's tensors are of a projector."""
    return any(part in name for name in names for part in PROJECTORS)
