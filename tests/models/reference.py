"""The same mathematics once more, in plain NumPy and float64: one row, one head, one query at a time."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from quecc_jax.config import DecoderConfig, RopeScaling, VisionConfig
from quecc_jax.config.query import ClipTextConfig

Tree = dict[str, Any]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def layer_norm(p: Tree, x: np.ndarray, eps: float) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def rms_norm(p: Tree, x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * p["scale"]


def affine(p: Tree, x: np.ndarray, outputs: int) -> np.ndarray:
    """x [n, in] -> [n, outputs], whatever the axes of the kernel."""
    return x @ p["kernel"].reshape(-1, outputs) + (p["bias"].reshape(-1) if "bias" in p else 0.0)


def layer(params: Tree, index: int) -> Tree:
    """One layer of a scanned stack, in float64."""
    return {
        k: layer(v, index) if isinstance(v, dict) else np.asarray(v[index], np.float64)
        for k, v in params.items()
    }


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    allowed: np.ndarray,
    bias: np.ndarray | float = 0.0,
    scalar: float = 0.0,
    cap: float = 0.0,
) -> np.ndarray:
    """One head: q [S, d], k and v [T, d], bool [S, T], logits' bias [S, T] -> [S, d]. Logits are divided by the
    root of the scalar, or of d, and capped, before the bias."""
    out, bias = np.zeros_like(q), np.broadcast_to(bias, allowed.shape)
    for i in range(len(q)):
        see = np.flatnonzero(allowed[i])
        logits = k[see] @ q[i] / math.sqrt(scalar or q.shape[1])
        logits = cap * np.tanh(logits / cap) if cap else logits
        out[i] = softmax(logits + bias[i, see]) @ v[see]
    return out


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(x)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def frequency(config: DecoderConfig, pair: int, places: int) -> float:
    """Radians per position of a pair of channels, in a row of that many places."""
    s = config.rope_scaling
    plain = config.rope_theta ** (-2 * pair / config.rotated_dim)
    if s.kind == "linear":
        return plain / s.factor
    if s.kind == "longrope":
        return plain / (s.short_factors if places <= s.original_length else s.long_factors)[pair]
    if s.kind == "llama3":
        turns = s.original_length * plain / (2 * math.pi)
        if turns <= s.slow_turns:
            return plain / s.factor
        if turns < s.fast_turns:
            share = (turns - s.slow_turns) / (s.fast_turns - s.slow_turns)
            return share * plain + (1 - share) * plain / s.factor
    return plain


def rotate(x: np.ndarray, positions: np.ndarray, config: DecoderConfig, places: int) -> np.ndarray:
    """Rotary positions of one head [S, d]: the pair (i, i + P) turned by position * frequency; what
    lies behind the P pairs stays."""
    out, pairs = x.copy(), config.rotated_dim // 2
    stretch = config.rope_scaling.attention_factor if config.rope_scaling.kind == "longrope" else 1.0
    for i in range(pairs):
        turn = stretch * np.exp(1j * positions * frequency(config, i, places))
        pair = (x[:, i] + 1j * x[:, i + pairs]) * turn
        out[:, i], out[:, i + pairs] = pair.real, pair.imag
    return out


def slopes(heads: int, bias_max: int) -> list[float]:
    """MPT's ALiBi slopes, from the list of a power of two of heads."""
    n = next(2**e for e in range(99) if 2**e >= heads)
    order = range(1, n + 1) if n == heads else [*range(2, n + 1, 2), *range(1, n + 1, 2)]
    return [0.5 ** (bias_max * i / n) for i in order][:heads]


def decode(params: Tree, config: DecoderConfig, x: np.ndarray, places: int = 0) -> np.ndarray:
    """Final hidden states of one unpadded conversation in a decoder of any family; `decode_layers`, then
    the norm."""
    scale = {"scale": np.asarray(params["norm"]["scale"], np.float64)}
    return _norm(config)(scale, decode_layers(params["layers"], config, x, places), config.norm_eps)


def _norm(config: DecoderConfig) -> Callable[..., np.ndarray]:
    if config.zero_centred_norm:
        return lambda p, x, eps: rms_norm({"scale": 1 + p["scale"]}, x, eps)
    return rms_norm if config.norm == "rms" else lambda p, x, eps: layer_norm({"bias": 0.0, **p}, x, eps)


def _heads(
    config: DecoderConfig, norm: Callable[..., np.ndarray], p: Tree, name: str, y: np.ndarray, count: int
) -> np.ndarray:
    """Queries or keys [S, heads, d] after their norm, if they have one."""
    d = config.head_dim
    flat = affine(p[name], y, count * d)
    if config.qk_norm == "all":
        flat = norm({"scale": p[f"{name}_norm"]["scale"].reshape(-1)}, flat, config.norm_eps)
    split = flat.reshape(len(y), count, d)
    return norm(p[f"{name}_norm"], split, config.norm_eps) if config.qk_norm == "head" else split


def _turned(x: np.ndarray, config: DecoderConfig, index: int, windowed: bool, places: int) -> np.ndarray:
    """One head [S, d] as a layer turns it."""
    if config.unrotated_every and index % config.unrotated_every == config.unrotated_every - 1:
        return x
    if config.local_rope_theta and windowed:
        config = dataclasses.replace(config, rope_theta=config.local_rope_theta, rope_scaling=RopeScaling())
    return rotate(x, np.arange(len(x)), config, places)


def decode_layers(layers: Tree, config: DecoderConfig, x: np.ndarray, places: int = 0) -> np.ndarray:
    """One unpadded conversation after a scanned stack of decoder layers.

    Args:
      x: embeddings [S, D].
      places: size of the row or cache, if larger than S.
    """
    c, length = config, len(x)
    d, positions = c.head_dim, np.arange(length)
    norm = _norm(config)
    x, distance = np.asarray(x, np.float64), positions[:, None] - positions[None]
    behind = c.norm_sites != "before"
    for index in range(c.depth):
        p = layer(layers, index)
        windowed = (
            bool(c.window)
            and index >= c.full_layers
            and not (c.full_every and index % c.full_every == c.full_every - 1)
        )
        allowed = (distance >= 0) & (distance < (c.window if windowed else length))
        y = x if c.norm_sites == "after" else norm(p["norm1"], x, c.norm_eps)
        q, k = _heads(c, norm, p, "q", y, c.heads), _heads(c, norm, p, "k", y, c.kv_heads)
        v = affine(p["v"], y, c.kv_heads * d).reshape(length, c.kv_heads, d)
        heads = []
        for h in range(c.heads):
            g = h // (c.heads // c.kv_heads)
            one, other = q[:, h], k[:, g]
            bias: np.ndarray | float = 0.0
            if c.positions == "rotary":
                one, other = (_turned(z, c, index, windowed, max(places, length)) for z in (one, other))
            else:
                bias = -slopes(c.heads, c.alibi_bias_max)[h] * distance
            heads.append(attend(one, other, v[:, g], allowed, bias, c.query_scalar, c.attention_softcap))
        y = affine(p["out"], np.concatenate(heads, -1), c.width)
        x = x + (norm(p["post_norm1"], y, c.norm_eps) if behind else y)
        y = x if c.norm_sites == "after" else norm(p["norm2"], x, c.norm_eps)
        up = affine(p["up"], y, c.mlp_width)
        if c.mlp == "gelu":
            y = gelu(up)
        else:
            y = (silu if c.mlp == "swiglu" else tanh_gelu)(affine(p["gate"], y, c.mlp_width)) * up
        y = affine(p["down"], y, c.width)
        x = x + (norm(p["post_norm2"], y, c.norm_eps) if behind else y)
    return x


def tower(params: Tree, config: VisionConfig, image: np.ndarray, cls: bool = False) -> list[np.ndarray]:
    """All depth + 1 hidden states [n, D] of one image [H, W, 3], or [1 + n, D] with CLS."""
    c, s = config, config.patch_size
    kernel = np.asarray(params["patch_embedding"]["kernel"], np.float64).reshape(s, s, 3, c.width)
    rows = [np.asarray(params["class_embedding"], np.float64)] if c.cls else []
    for down in range(c.grid):
        for across in range(c.grid):
            patch = image[down * s : (down + 1) * s, across * s : (across + 1) * s]
            embedded = np.einsum("abc,abcd->d", patch.astype(np.float64), kernel)
            rows.append(embedded + (params["patch_embedding"]["bias"] if c.patch_bias else 0.0))
    x = np.stack(rows) + params["position_embedding"]
    if c.registers:
        x = np.concatenate([x[: c.cls], params["registers"], x[c.cls :]])
    if c.pre_norm:
        x = layer_norm(params["pre_norm"], x, c.norm_eps)
    states = [x]
    for index in range(c.depth):
        x = tower_layer(layer(params["layers"], index), c, x, np.ones((len(x), len(x)), bool))
        states.append(x)
    return states if cls else [x[c.cls + c.registers :] for x in states]


def tower_layer(p: Tree, c: VisionConfig | ClipTextConfig, x: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """One layer of a tower of images or of CLIP's of text: x [S, D], bool [S, S]."""
    y, d = layer_norm(p["norm1"], x, c.norm_eps), c.width // c.heads
    q, k, v = (affine(p[name], y, c.width) for name in "qkv")
    parts = [slice(h * d, (h + 1) * d) for h in range(c.heads)]
    heads = [attend(q[:, part], k[:, part], v[:, part], seen) for part in parts]
    scaled = isinstance(c, VisionConfig) and c.layer_scale
    x = x + (p["scale1"] if scaled else 1.0) * affine(p["out"], np.concatenate(heads, -1), c.width)
    z = layer_norm(p["norm2"], x, c.norm_eps)
    y = affine(p["fc1"], z, c.mlp_width)
    if c.activation == "swiglu":
        y = silu(affine(p["gate"], z, c.mlp_width)) * y
    else:
        bent = {"quick_gelu": lambda y: y / (1 + np.exp(-1.702 * y)), "gelu": gelu, "gelu_tanh": tanh_gelu}
        y = bent[c.activation](y)
    return x + (p["scale2"] if scaled else 1.0) * affine(p["fc2"], y, c.width)


def clip_text(params: Tree, config: ClipTextConfig, ids: np.ndarray) -> np.ndarray:
    """CLIP's text feature [H] of one text's ids, its end token last."""
    x = params["token_embedding"][ids].astype(np.float64) + params["position_embedding"][: len(ids)]
    for index in range(config.depth):
        x = tower_layer(layer(params["layers"], index), config, x, np.tri(len(ids), dtype=bool))
    last = layer_norm(params["final_norm"], x[-1], config.norm_eps)
    return last @ params["projection"]["kernel"] if config.projection else last
