"""What stored features are of: frozen parameters, and how what they read was made."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from quecc_jax.config import DataConfig, DecoderConfig, ModelConfig, VisionConfig
from quecc_jax.config.shapes import hidden_indices

LATER = (
    "scales",
    "keep_attention",
    "keep_cls",
    "norm_sites",
    "zero_centred_norm",
    "qk_norm",
    "local_rope_theta",
    "unrotated_every",
    "full_every",
    "query_scalar",
    "attention_softcap",
    "logit_softcap",
    "out_bias",
    "scale_embeddings",
    "drop_border",
    "cls",
    "registers",
    "patch_bias",
    "pre_norm",
    "layer_scale",
    "position_grid",
    "antialias_positions",
    "pixels",
    "max_squares",
)
"""Settings of towers and decoders that were not there when the first features were stored."""


@jax.jit
def checksums(tree: PyTree) -> PyTree:
    """uint32 [2] of every leaf's float32 bits and where they stand.

    Sums of whole numbers modulo 2^32, so that they are the same in any order: on every mesh, without
    gathering a leaf.
    """

    def one(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        index, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
        for axis in reversed(range(leaf.ndim)):
            step = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            index = index + step * jnp.uint32(stride % 2**32)
            stride *= leaf.shape[axis]
        mixed = _mix(bits ^ _mix(index + jnp.uint32(0x9E3779B9)))
        return jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in (mixed, _mix(mixed ^ index))])

    return jax.tree.map(one, tree)


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser: every bit of the input moves every bit of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def fingerprint(params: PyTree, *settings: Any) -> str:
    """16 hex digits of parameters (as float32) and of settings that JSON can hold."""
    sums = jax.tree_util.tree_leaves_with_path(jax.device_get(checksums(params)))
    leaves = [[jax.tree_util.keystr(path), value.tolist()] for path, value in sums]
    return hashlib.sha256(json.dumps([leaves, settings], sort_keys=True).encode()).hexdigest()[:16]


def query_fingerprint(params: dict[str, PyTree], model: ModelConfig) -> str:
    """Of query features, but for the questions: the encoder's name and settings, a colon, and what its
    parameters are (`params` by top-level name)."""
    query = model.query
    if query.encoder == "clip_text":
        return f"clip_text:{fingerprint(params['text'], dataclasses.asdict(query.text))}"
    decoder = params["decoder"]
    if query.encoder == "embeddings":
        return f"embeddings:{fingerprint(decoder['embedding'], model.dtype)}"
    name = f"early_exit {query.layer}" if query.encoder == "early_exit" else "decoder"
    return f"{name}:{fingerprint(decoder, _settings(model.decoder))}"


def _settings(config: DecoderConfig | VisionConfig) -> dict[str, Any]:
    """All settings but LATER ones that are as they were before them: features that were stored then stay known."""
    plain = dataclasses.asdict(type(config)())
    return {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in LATER or value != plain[name]
    }


def tower_fingerprint(params: PyTree, vision: VisionConfig, data: DataConfig) -> str:
    """Of a tower's states: its parameters, which states are kept, how images are read and made square."""
    # Stored features are of squares; how larger images would be cut does not matter.
    others = ("levels", "select_layer", "tiles", "max_squares")
    settings = {k: v for k, v in _settings(vision).items() if k not in others}
    if "keep_attention" in settings:
        # Its name in the fingerprints of stored features.
        settings["attention"] = settings.pop("keep_attention")
    read = () if data.image_decoding == "upright" else (data.image_decoding,)
    return fingerprint(params, settings, hidden_indices(vision), data.image_aspect, *read)
