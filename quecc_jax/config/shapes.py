"""Sizes that follow from a config alone; light to import, so that counting needs no model code."""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from quecc_jax.config import DecoderConfig, ModelConfig, VisionConfig
from quecc_jax.config.compressors import exchanged
from quecc_jax.config.data import DataConfig
from quecc_jax.errors import UserError
from quecc_jax.models.compressors.base_config import Sizes

GRANULE = 128
"""Row lengths keep the powers of two in data.max_length up to this one, which is a TPU's tile."""

SHRUNK_FROM = 1.1
"""How many times as long and as wide as `vision.max_squares` allows a map may be before it is shrunk."""


def rounded_length(length: int, like: int) -> int:
    """A row's length, raised to a multiple of the powers of two, up to GRANULE, in that of another."""
    granule = min(like & -like, GRANULE)
    return -(-length // granule) * granule


def hidden_indices(config: VisionConfig) -> tuple[int, ...]:
    """Hidden states that are used at all, ascending, as indices 0 (embedding) to depth."""
    return tuple(sorted({config.state_index(k) for k in (*config.levels, config.select_layer)}))


def state_shape(config: VisionConfig) -> tuple[int, int, int]:
    """(rows, K, D) of what is kept of the tower for one image: K hidden states, and behind them a layer's
    queries and keys where these are kept."""
    return config.rows, len(hidden_indices(config)) + 2 * config.keep_attention, config.feature_width


def compressor_sizes(config: ModelConfig) -> Sizes:
    """The model around its compressor."""
    vision = config.vision
    return Sizes(
        vision.grid, len(vision.levels), vision.feature_width, config.decoder.width, query_width(config)
    )


def first_token(config: ModelConfig, visual_tokens: int) -> int:
    """Which of the T tokens that the compressor makes of an image is the first of those of this V."""
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
        known = listed(choices, " or ")
        raise UserError(f"this model makes {known} visual tokens of an image, not {v}; ask for one of them")
    if not config.compressor.elastic:
        return config
    return dataclasses.replace(config, compressor=exchanged(config.compressor, tokens=v))


def listed(choices: Sequence[int], last: str = ", ") -> str:
    """Numbers for a message; of many that are evenly spaced the first two and the last."""
    steps = {b - a for a, b in itertools.pairwise(choices)}
    if len(choices) > 6 and len(steps) == 1:
        return f"{choices[0]}, {choices[1]}, ..., {choices[-1]}"
    return last.join(map(str, choices))


def tiled_tokens(config: ModelConfig) -> int:
    """Tokens of an any-resolution image that fills its largest map, newlines included; at most, where maps are
    shrunk."""
    v, vision = config.visual_tokens, config.vision
    side = math.isqrt(v) if config.has_newline else 0
    most = int(SHRUNK_FROM**2 * vision.max_squares * v) or math.inf
    return max(int(v + min(rows * columns * v, most)) + rows * side for rows, columns in vision.tiles)


def teacher_length(config: ModelConfig, data: DataConfig, length: int, images: int) -> int:
    """Tokens of a row with all the tower's tokens of its images, where the row of a run's batch has `length` and room
    for so many images of V tokens each."""
    # Padded rows are shorter where their V is drawn, and hold what rows of the largest do.
    longest = data.max_length if data.batching == "pad" else length
    more = config.vision.patches + config.vision.keep_cls - config.visual_tokens
    return rounded_length(longest + images * more, longest)


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


def decoder_matrices(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the matrices of one of the decoder's layers, by our name."""
    width, hidden = config.width, config.mlp_width
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = {"q": (width, queries), "k": (width, keys), "v": (width, keys), "out": (queries, width)}
    gate = {"gate": (width, hidden)} if config.mlp != "gelu" else {}
    return {**attention, **gate, "up": (width, hidden), "down": (hidden, width)}


def adapted_matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Those of `decoder_matrices` that have an adapter."""
    return {
        name: sides for name, sides in decoder_matrices(config.decoder).items() if config.lora.adapts(name)
    }


def row_limit(data: DataConfig, images: int) -> int:
    """Most tokens of the questions about so many images of a row, or of a pool of rows.

    In the decoder's own tokens they are no more than the rows', of which they are parts.
    """
    most = data.query_limit * images
    return most if data.query_tokenizer else min(most, data.max_length * data.rows_per_pool)
