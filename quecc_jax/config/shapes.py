"""Sizes that follow from a config alone; light to import, so that counting needs no model code."""

import dataclasses
import math
import re

from quecc_jax.config import CompressorConfig, ModelConfig, VisionConfig
from quecc_jax.errors import UserError


def hidden_indices(config: VisionConfig) -> tuple[int, ...]:
    """Hidden states that are used at all, ascending, as indices 0 (embedding) to depth."""
    return tuple(sorted({config.state_index(k) for k in (*config.levels, config.select_layer)}))


def state_shape(config: VisionConfig) -> tuple[int, int, int]:
    """(rows, K, D) of what is kept of the tower for one picture: K hidden states, and behind them a layer's
    queries and keys where these are kept."""
    return config.rows, len(hidden_indices(config)) + 2 * config.keep_attention, config.feature_width


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
    """Tokens V per picture of grid x grid patches, the most of an elastic compressor's if none is chosen;
    ValueError if the geometry does not fit."""
    shape = config.kind.shape
    if config.elastic:
        return _elastic_tokens(config, grid)
    if config.tokens and shape != "free":
        raise ValueError(
            f"{config.name} takes V from kernel and stride, not from tokens {config.tokens}; "
            "leave tokens at 0"
        )
    if shape == "all":
        return grid**2
    tokens = config.tokens or output_grid(grid, config.kernel, config.stride) ** 2
    if not 0 < tokens <= grid**2:
        raise ValueError(f"tokens {tokens} is not between 1 and the {grid**2} patches of a picture")
    _check_own(config, tokens, grid)
    return tokens


def _check_own(config: CompressorConfig, tokens: int, grid: int) -> None:
    """ValueError if what only one compressor has does not fit V or the grid."""
    queries = config.queries
    if config.name == "quecc_plus" and config.fuses:
        side = math.isqrt(config.memory)
        if not side or side**2 != config.memory or grid % side:
            raise ValueError(f"memory {config.memory} is not the square of a divisor of the grid's {grid}")
    if config.name == "mqt" and (tokens > queries or math.isqrt(queries) ** 2 != queries):
        raise ValueError(f"queries {queries} is not a square number of at least the {tokens} tokens")
    if config.name == "llava_mini" and math.isqrt(tokens) ** 2 != tokens:
        raise ValueError(f"tokens {tokens} is not a square number, but llava_mini's queries are a square")


def _elastic_tokens(config: CompressorConfig, grid: int) -> int:
    choices = config.elastic
    if not config.kind.elastic:
        raise ValueError(f"{config.name} makes one V only; leave elastic empty")
    if config.tokens and config.tokens not in choices:
        raise ValueError(f"tokens {config.tokens} is none of the elastic {choices}; choose one of them, or 0")
    if list(choices) != sorted(set(choices)) or choices[0] < 1 or choices[-1] > grid**2:
        raise ValueError(f"elastic {choices} is not a list of ascending numbers up to {grid**2}; order them")
    sides = [s for s in range(1, grid + 1) if grid % s == 0]
    if config.kind.shape == "grid" and not {s * s for s in sides}.issuperset(choices):
        raise ValueError(
            f"not all of elastic {choices} tile a {grid} x {grid} grid; these do: {[s * s for s in sides]}"
        )
    _check_own(config, choices[-1], grid)
    return config.tokens or choices[-1]


def output_sides(config: ModelConfig) -> tuple[int, ...]:
    """Sides h of a grid compressor's output grids, one for each V that it makes side by side."""
    return tuple(math.isqrt(v) for v in config.output_token_groups)


def first_token(config: ModelConfig, visual_tokens: int) -> int:
    """Which of the T tokens that the compressor makes of a picture is the first of those of this V."""
    scales = config.output_token_groups
    return 0 if len(scales) == 1 else sum(scales[: scales.index(visual_tokens)])


def at_visual_tokens(config: ModelConfig, visual_tokens: int = 0) -> ModelConfig:
    """The model as it answers: a compressor with several V makes the one asked for, by default the largest.

    Args:
      config: a trained model's.
      visual_tokens: V, or 0 for the model's own or largest.

    Raises:
      UserError: the model does not make this V.
    """
    choices = config.compressor.elastic or (config.visual_tokens,)
    v = visual_tokens or config.visual_tokens
    if v not in choices:
        known = " or ".join(map(str, choices))
        raise UserError(f"this model makes {known} visual tokens of a picture, not {v}; ask for one of them")
    if not config.compressor.elastic:
        return config
    return dataclasses.replace(config, compressor=dataclasses.replace(config.compressor, tokens=v))


def tiled_tokens(config: ModelConfig) -> int:
    """Tokens of an any-resolution picture that fills its largest map, newlines included."""
    v = config.visual_tokens
    side = math.isqrt(v) if config.has_newline else 0
    return max(v * (1 + rows * columns) + rows * side for rows, columns in config.vision.tiles)


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
