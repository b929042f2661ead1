"""The same mathematics once more, in plain NumPy and float64: one row, one head, one query at a time."""

import math
from typing import Any

import numpy as np

from quecc_jax.config import DecoderConfig, VisionConfig

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
    return {k: layer(v, index) if isinstance(v, dict) else np.asarray(v[index], np.float64)
            for k, v in params.items()}  # fmt: skip


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """One head: q [S, d], k and v [T, d], bool [S, T] -> [S, d]."""
    out = np.zeros_like(q)
    for i in range(len(q)):
        see = np.flatnonzero(allowed[i])
        out[i] = softmax(k[see] @ q[i] / math.sqrt(q.shape[1])) @ v[see]
    return out


def rotate(x: np.ndarray, positions: np.ndarray, theta: float) -> np.ndarray:
    """Rotary positions of one head [S, d]: the pair (i, i + d/2) turned by position * theta^(-2i/d)."""
    out, d = np.empty_like(x), x.shape[1]
    for i in range(d // 2):
        turn = np.exp(1j * positions * theta ** (-2 * i / d))
        pair = (x[:, i] + 1j * x[:, i + d // 2]) * turn
        out[:, i], out[:, i + d // 2] = pair.real, pair.imag
    return out


def decode(params: Tree, config: DecoderConfig, x: np.ndarray) -> np.ndarray:
    """Final hidden states of one unpadded conversation: LLaMA, with biases where Qwen2 has them.

    Args:
      x: embeddings [S, D].
    """
    c, length = config, len(x)
    d, positions = c.width // c.heads, np.arange(length)
    x, past = np.asarray(x, np.float64), np.tri(length, dtype=bool)
    for index in range(c.depth):
        p = layer(params["layers"], index)
        y = rms_norm(p["norm1"], x, c.norm_eps)
        q = affine(p["q"], y, c.heads * d).reshape(length, c.heads, d)
        k = affine(p["k"], y, c.kv_heads * d).reshape(length, c.kv_heads, d)
        v = affine(p["v"], y, c.kv_heads * d).reshape(length, c.kv_heads, d)
        heads = []
        for h in range(c.heads):
            g = h // (c.heads // c.kv_heads)
            turned_q, turned_k = (rotate(one, positions, c.rope_theta) for one in (q[:, h], k[:, g]))
            heads.append(attend(turned_q, turned_k, v[:, g], past))
        x = x + affine(p["out"], np.concatenate(heads, -1), c.width)
        y = rms_norm(p["norm2"], x, c.norm_eps)
        gate = affine(p["gate"], y, c.mlp_width)
        x = x + affine(p["down"], gate / (1 + np.exp(-gate)) * affine(p["up"], y, c.mlp_width), c.width)
    return rms_norm({"scale": np.asarray(params["norm"]["scale"], np.float64)}, x, c.norm_eps)


def tower(params: Tree, config: VisionConfig, picture: np.ndarray) -> list[np.ndarray]:
    """All depth + 1 hidden states [n, D] of one picture [H, W, 3], CLS dropped."""
    c, s = config, config.patch_size
    kernel = np.asarray(params["patch_embedding"]["kernel"], np.float64).reshape(s, s, 3, c.width)
    rows = [np.asarray(params["class_embedding"], np.float64)]
    for down in range(c.grid):
        for across in range(c.grid):
            patch = picture[down * s : (down + 1) * s, across * s : (across + 1) * s]
            rows.append(np.einsum("abc,abcd->d", patch.astype(np.float64), kernel))
    x = layer_norm(params["pre_norm"], np.stack(rows) + params["position_embedding"], c.norm_eps)
    states, d = [x[1:]], c.width // c.heads
    for index in range(c.depth):
        p = layer(params["layers"], index)
        y = layer_norm(p["norm1"], x, c.norm_eps)
        q, k, v = (affine(p[name], y, c.width) for name in "qkv")
        parts = [slice(h * d, (h + 1) * d) for h in range(c.heads)]
        seen = np.ones((len(x), len(x)), bool)
        heads = [attend(q[:, part], k[:, part], v[:, part], seen) for part in parts]
        x = x + affine(p["out"], np.concatenate(heads, -1), c.width)
        y = affine(p["fc1"], layer_norm(p["norm2"], x, c.norm_eps), c.mlp_width)
        if c.activation == "quick_gelu":
            y = y / (1 + np.exp(-1.702 * y))
        else:
            y = y * np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))(y)
        x = x + affine(p["fc2"], y, c.width)
        states.append(x[1:])
    return states
