"""Every compressor under one set of settings, for tests that run through all of them."""

import dataclasses

from quecc_jax.config import CompressorConfig
from quecc_jax.config.compressors import config_class, named, names


def fitting(name: str, **settings: object) -> CompressorConfig:
    """The compressor of that name, with those of the settings that it has."""
    own = {f.name for f in dataclasses.fields(config_class(name))}
    return named(name, **{k: v for k, v in settings.items() if k in own})


ELASTIC = [name for name in names() if "elastic" in {f.name for f in dataclasses.fields(config_class(name))}]
"""Those whose weights can serve several V."""
