"""The tiny model with every compressor and every other part: what is said of all parameters holds for these."""

import dataclasses
from typing import Any

from quecc_jax.config import ModelConfig, QueryConfig
from quecc_jax.config.compressors import exchanged, names
from tests.tiny import MODEL

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"compressor {name}": {"compressor": exchanged(MODEL.compressor, name)} for name in names()},
    "every part of quecc_plus": {
        "compressor": exchanged(MODEL.compressor, "quecc_plus", registers=True, rounds=2)
    },
    "elastic": {"compressor": {"elastic": (1, 4, 16)}},
    "tiles": {"vision": {"tiles": ((1, 2), (2, 2)), "post_norm": True, "keep_cls": True}},
    "linear projector": {"projector": "linear"},
    "matrix": {"projector": "matrix"},
    "a text tower": {"query": QueryConfig("clip_text")},
    "qwen2": {"decoder": {"qkv_bias": True, "tie_embeddings": True}},
    "mpt": {"decoder": {"norm": "layer", "mlp": "gelu", "positions": "alibi", "tie_embeddings": True}},
    "olmo2": {"decoder": {"norm_sites": "after", "qk_norm": "all", "qkv_bias": True, "out_bias": True}},
    "gemma3": {
        "decoder": {
            "mlp": "geglu",
            "norm_sites": "both",
            "zero_centred_norm": True,
            "qk_norm": "head",
            "window": 4,
            "full_every": 2,
            "local_rope_theta": 50.0,
            "logit_softcap": 5.0,
            "scale_embeddings": True,
            "tie_embeddings": True,
        }
    },
}


def variant(**changes: Any) -> ModelConfig:
    """MODEL with some fields of its parts replaced."""
    parts = {
        k: dataclasses.replace(getattr(MODEL, k), **v) if isinstance(v, dict) else v
        for k, v in changes.items()
    }
    return dataclasses.replace(MODEL, **parts)
