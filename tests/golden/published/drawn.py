"""Weights and pixels of the small published models, from their names alone, so that none is stored."""

import re
import zlib

import numpy as np


def uniform(name: str, *shape: int) -> np.ndarray:
    """float32 of this shape with mean 0 and variance 1, by splitmix64 of the name's checksum and a number's index."""
    with np.errstate(over="ignore"):
        x = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint64) + np.uint64(
            zlib.crc32(name.encode()) << 32
        )
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    share = (x >> np.uint64(11)).astype(np.float64) / 2.0**53
    return ((share - 0.5) * np.sqrt(12)).astype(np.float32).reshape(shape)


def weights(name: str, *shape: int) -> np.ndarray:
    """A tensor of that name: norms near 1, other vectors near 0, matrices such that they keep a variance."""
    noise = uniform(name, *shape)
    if len(shape) == 1:
        scale = re.search(r"(norm\d?|layrnorm|ln_\w+)\.weight$", name) is not None
        return (0.1 * noise + scale).astype(np.float32)
    table = "embed" in name.rsplit(".", 2)[-2]
    return noise if table else (noise / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def pixels(images: int, side: int) -> np.ndarray:
    """uint8 [images, side, side, 3]."""
    noise = uniform("pixels", images, side, side, 3)
    return np.clip(noise * 40 + 128, 0, 255).astype(np.uint8)
