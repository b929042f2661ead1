"""S2 (arXiv 2403.13043): one tower over an image at several scales, features side by side.

At scale s the image, s times the tower's input along each side, is cut into s x s tiles that the tower sees
one by one. Their features make a map of (s g) x (s g) patches, averaged down to g x g.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float

from quecc_jax.config import VisionConfig
from quecc_jax.models.arrays import Array
from quecc_jax.models.bicubic import bicubic_weights


def split_scales(
    pixels: Float[Array, "B side side 3"], config: VisionConfig
) -> Float[Array, "BT tile tile 3"]:
    """Tiles [B * T, H, W, 3] of images [B, input, input, 3]; T = sum of s^2, each image's together.

    Smaller scales are made of the largest by bicubic interpolation, as the original does it: by torch's
    kernel (a = -0.75), without antialiasing.
    """
    if config.scales == (1,):
        return pixels
    b, side, parts = pixels.shape[0], config.image_size, []
    for scale in config.scales:
        scaled = pixels
        if scale * side != config.input_size:
            matrix = jnp.asarray(bicubic_weights(config.input_size, scale * side), jnp.float32)
            product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
            scaled = product("yh,bhwc,xw->byxc", matrix, pixels.astype(jnp.float32), matrix)
        tiles = scaled.astype(pixels.dtype).reshape(b, scale, side, scale, side, 3)
        parts.append(tiles.transpose(0, 1, 3, 2, 4, 5).reshape(b, scale * scale, side, side, 3))
    return jnp.concatenate(parts, axis=1).reshape(-1, side, side, 3)


def join_scales(states: Float[Array, "BT N K width"], config: VisionConfig) -> Float[Array, "B N K D"]:
    """States [B, N, K, scales * D] of the tiles' states [B * T, N, K, D] that `split_scales` made.

    Channels stand scale by scale, in the config's order; averages are taken in float32.
    """
    if config.scales == (1,):
        return states
    (_, n, kept, width), grid = states.shape, config.grid
    states = states.reshape(-1, config.tiles_seen, n, kept, width)
    parts, first = [], 0
    for scale in config.scales:
        tiles = states[:, first : first + scale * scale]
        first += scale * scale
        tiles = tiles.reshape(-1, scale, scale, grid, grid, kept, width).transpose(0, 1, 3, 2, 4, 5, 6)
        squares = tiles.reshape(-1, grid, scale, grid, scale, kept, width)
        parts.append(squares.mean(axis=(2, 4), dtype=jnp.float32).reshape(-1, n, kept, width))
    return jnp.concatenate(parts, axis=-1).astype(states.dtype)
