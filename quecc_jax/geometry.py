"""Sizes that follow from a config alone; light to import, so that counting needs no model code."""

import re

from quecc_jax.config import CompressorConfig, ModelConfig, VisionConfig


def hidden_indices(config: VisionConfig) -> tuple[int, ...]:
    """Hidden states that are used at all, ascending, as indices 0 (embedding) to depth."""
    wanted = (*config.levels, config.select_layer)
    return tuple(sorted({k if k >= 0 else config.depth + 1 + k for k in wanted}))


def output_grid(grid: int, kernel: int, stride: int) -> int:
    """Side h of a compressor's output grid, (grid - kernel) // stride + 1.

    Raises:
      ValueError: the kernel does not fit, or h does not divide the grid so that regions would be
        uneven. The message names the numbers and the strides that work.
    """
    valid = [s for s in range(1, grid + 1) if grid % s == 0]
    hint = f"with kernel = stride, a grid of {grid} takes the strides {valid}"
    if kernel < 1 or stride < 1 or kernel > grid:
        raise ValueError(f"kernel {kernel} and stride {stride} do not fit a {grid} x {grid} grid; {hint}")
    side = (grid - kernel) // stride + 1
    if grid % side:
        raise ValueError(
            f"kernel {kernel} and stride {stride} give a {side} x {side} output, "
            f"which does not divide the {grid} x {grid} grid; {hint}"
        )
    return side


def output_tokens(config: CompressorConfig, grid: int) -> int:
    """Tokens V per picture of grid x grid patches; ValueError if the geometry does not fit."""
    shape = config.kind.shape
    if config.tokens and shape != "free":
        raise ValueError(f"{config.name} takes V from kernel and stride, not from tokens {config.tokens}; "
                         "leave tokens at 0")
    if shape == "all":
        return grid**2
    if not config.tokens:
        return output_grid(grid, config.kernel, config.stride) ** 2
    if not 0 < config.tokens <= grid**2:
        raise ValueError(f"tokens {config.tokens} is not between 1 and the {grid**2} patches of a picture")
    return config.tokens


def query_width(config: ModelConfig) -> int:
    """Width H of the question's feature."""
    text = config.query.text
    return config.decoder.width if config.query.reads_decoder else text.projection or text.width


def query_layers(config: ModelConfig) -> int:
    """Layers of the question's encoder, which run one after the other before the compressor can."""
    query = config.query
    layers = {"decoder": config.decoder.depth, "early_exit": query.layer, "clip_text": query.text.depth}
    return layers.get(query.encoder, 0)


def projector_depth(kind: str) -> int:
    """Linear layers in a projector: `identity` 0, `linear` and `matrix` 1, `mlpNx_gelu` N.

    Raises:
      ValueError: the kind is none of these.
    """
    if kind in ("identity", "linear", "matrix"):
        return int(kind != "identity")
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if not match or int(match[1]) < 1:
        raise ValueError(f"unknown projector {kind!r}; use linear, matrix, identity or mlpNx_gelu, N >= 1")
    return int(match[1])
