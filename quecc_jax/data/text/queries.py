"""Questions for the compressor in a batch: one behind the other in a row, in a few static lengths.

Nothing is cut to fit a shape. The length of a batch follows from the plan of the global batch, so that every
process compiles and runs the same program.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from quecc_jax.config import DataConfig, ModelConfig
from quecc_jax.config.shapes import row_limit

SHORTEST = 32
"""Tokens of the shortest bucket: a longer pass over the decoder's weights costs no more time."""
BUCKETS = 4
RATIO = 4
"""Of two neighbouring buckets: with powers of four, four of them reach from 32 tokens to 2,048."""


def query_buckets(data: DataConfig, model: ModelConfig) -> tuple[int, ...]:
    """Lengths Q that the queries of a training batch may have, ascending: `limit_buckets`, or the longest
    alone where the step reads no question, because the compressor reads none or its feature is stored."""
    buckets = limit_buckets(row_limit(data, data.row_images(model.visual_tokens, model.vision.max_crops)))
    return buckets[-1:] if data.cached_queries or not model.compressor.reads_question else buckets


def limit_buckets(limit: int) -> tuple[int, ...]:
    """A limit and at most three shorter lengths, ascending; these are multiples of the shortest, so that they
    divide over the devices of a mesh that splits sequences."""
    buckets = [limit]
    while len(buckets) < BUCKETS and buckets[-1] >= SHORTEST * RATIO:
        buckets.append(-(-buckets[-1] // (SHORTEST * RATIO)) * SHORTEST)
    return tuple(buckets[::-1])


def bucket(length: int, buckets: Sequence[int]) -> int:
    """The shortest bucket that holds so many tokens."""
    return next(size for size in buckets if size >= length)


def question_segments(ends: np.ndarray, length: int) -> np.ndarray:
    """int32 [length]: 1, 2, ... for each of the questions that end at `ends`, in any order and repeated; 0
    behind the last."""
    last = np.unique(ends)
    number = np.searchsorted(last, np.arange(length)) + 1
    return np.where(number <= len(last), number, 0).astype(np.int32)


def question_ids(queries: ArrayLike, segments: ArrayLike, end: int) -> np.ndarray:
    """int32 [<= Q]: the question that ends there, of a row's queries and segments [Q]."""
    segments = np.asarray(segments)
    return np.asarray(queries)[segments == segments[end]]
