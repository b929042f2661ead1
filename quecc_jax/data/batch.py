"""The batch: the arrays that pass from data on the host to the model on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Float16, Int32, Int64, UInt8

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.config.shapes import query_width, state_shape
from quecc_jax.data.text.queries import query_buckets

IGNORE = -100
"""Label of a position that carries no loss."""

NEWLINE = np.iinfo(np.int32).max
"""Slot of the learned vector that ends a row of an any-resolution image's map of tokens."""

MAP = 8
"""Numbers that say how the map of an image's tokens is shrunk, see `Batch.maps`."""

Array = Any
"""np.ndarray on the host, jax.Array on the device, jax.ShapeDtypeStruct for compiling ahead of time."""


class Batch(NamedTuple):
    """A fixed-shape batch of B rows; any field may also hold what a tree map makes of it, such as its sharding.

    An image is I-th of its row and owns V consecutive slots of that row's flat visual tokens
    [I * V]. A text-only row is an ordinary row none of whose positions has a slot; its images
    are zeros and it has no queries.

    Packed rows may share room for images (`data.pooled_rows`): of L pools, each has the images and the questions of
    B / L rows, one row's behind those of the row before, and slots count through the pool's visual tokens. Else
    each row is a pool of its own, L = B.
    """

    tokens: Int32[Array, "B S"]
    """token ids; 0 at visual slots and padding."""
    slots: Int32[Array, "B S"]
    """index into the pool's flat visual tokens, or NEWLINE; -1 where the position is text."""
    labels: Int32[Array, "B S"]
    """the position's own token id where it carries loss, IGNORE elsewhere (unshifted)."""
    positions: Int32[Array, "B S"]
    """rotary position within the segment."""
    segments: Int32[Array, "B S"]
    """1, 2, ... for the conversations packed into the row, 0 for padding."""
    queries: Int32[Array, "L Q"]
    """bare questions (BOS first) that condition the images' compression, one behind the other; Q is
    one of `queries.query_buckets`."""
    query_segments: Int32[Array, "L Q"]
    """1, 2, ... for the questions of the pool, 0 for padding."""
    query_ends: Int32[Array, "L I"]
    """Position in the pool's queries of the last token of the question about each image; -1 for no
    image."""
    pixels: UInt8[Array, "L I height width 3"] = None
    """Normalised on the device; None when features are given."""
    features: Float[Array, "L I N K D"] = None
    """float16 or float32 cached tower states, see `shapes.state_shape`."""
    query_features: Float16[Array, "L I query_width"] = None
    """Cached query features; None where their encoder computes them."""
    maps: Int32[Array, "L I MAP"] = None
    """How maps of tokens are shrunk, for each crop: its number within its image, then `Arrangement.shrunk`; zeros where
    they are not, and None where the model shrinks none."""
    ids: np.ndarray | None = None
    """[B] int64 identity of each row's sample, or [B, C] of each packed row's C samples or fewer, -1 for
    none; those that are left out stand here too. Stays on the host."""


def batch_of(
    codes: Int32[np.ndarray, "B S"],
    loss: Bool[np.ndarray, "B S"],
    positions: Int32[np.ndarray, "B S"],
    segments: Int32[np.ndarray, "B S"],
    queries: Int32[np.ndarray, "L Q"],
    query_segments: Int32[np.ndarray, "L Q"],
    query_ends: Int32[np.ndarray, "L I"],
    pixels: UInt8[np.ndarray, "L I height width 3"] | None,
    features: Float16[np.ndarray, "L I N K D"] | None,
    query_features: Float16[np.ndarray, "L I query_width"] | None,
    maps: Int32[np.ndarray, "L I MAP"] | None,
    ids: Int64[np.ndarray, "B ..."],
) -> Batch:
    """The host's batch of laid-out rows; the tests check its shapes through jaxtyping's import hook.

    Args:
      codes: token ids, or -1 - k where slot k of the row's visual tokens stands.
      loss: positions that carry loss.
      positions, segments, queries, query_segments, query_ends, pixels, features, query_features, maps, ids: as in
        `Batch`.
    """
    return Batch(
        tokens=np.maximum(codes, 0),
        slots=np.where(codes < 0, -1 - codes, -1),
        labels=np.where(loss, codes, IGNORE),
        positions=positions,
        segments=segments,
        queries=queries,
        query_segments=query_segments,
        query_ends=query_ends,
        pixels=pixels,
        features=features,
        query_features=query_features,
        maps=maps,
        ids=ids,
    )


def batch_spec(
    model: ModelConfig, data: DataConfig, rows: int, cached: bool = False, query_length: int = 0
) -> Batch:
    """Shapes and dtypes of a batch of `rows` rows, for initialisation and ahead-of-time compiling.

    Grouped batches may be shorter, and without image slots; this is the largest, with queries of
    `query_length` tokens, one of `queries.query_buckets`, or the longest for 0.
    """
    b, s, vision = rows, data.max_length, model.vision
    i = data.row_images(model.visual_tokens, vision.max_crops)
    q = (query_length or query_buckets(data, model)[-1]) if i else 0

    def spec(dtype: DTypeLike, *shape: int) -> Array:
        return jax.ShapeDtypeStruct(shape, dtype)

    pools = -(-b // data.rows_per_pool)
    text, asked, side = spec(jnp.int32, b, s), spec(jnp.int32, pools, q), vision.input_size
    return Batch(
        tokens=text,
        slots=text,
        labels=text,
        positions=text,
        segments=text,
        queries=asked,
        query_segments=asked,
        query_ends=spec(jnp.int32, pools, i),
        pixels=spec(jnp.uint8, pools, i, side, side, 3) if i and not cached else None,
        features=spec(jnp.float16, pools, i, *state_shape(model.tower)) if i and cached else None,
        query_features=spec(jnp.float16, pools, i, query_width(model)) if i and data.cached_queries else None,
        maps=spec(jnp.int32, pools, i, MAP) if i and vision.max_squares else None,
    )
