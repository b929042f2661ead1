"""How long the questions of a batch may be: a few static shapes, of which it takes the shortest that fits.

Nothing is cut to fit a shape. The bucket follows from the plan of the global batch, so that every process
compiles and runs the same program.
"""

from collections.abc import Sequence

from quecc_jax.config import DataConfig, ModelConfig

SHORTEST = 32
"""Tokens of the shortest bucket: a longer pass over the decoder's weights costs no more time."""
BUCKETS = 4
RATIO = 4
"""Of two neighbouring buckets: with powers of four, four of them reach from 32 tokens to 2,048."""


def query_buckets(data: DataConfig, model: ModelConfig) -> tuple[int, ...]:
    """Lengths Q that the queries of a training batch may have, ascending: `limit_buckets`, or the limit alone
    where the step reads no question, because the compressor reads none or its feature is stored."""
    if data.cached_queries or not model.compressor.reads_question:
        return (data.query_limit,)
    return limit_buckets(data, model)


def limit_buckets(data: DataConfig, model: ModelConfig) -> tuple[int, ...]:
    """`data.query_limit` and at most three shorter lengths, ascending.

    Decoders with `longrope` turn their heads otherwise in rows above `original_length`: a bucket ends there,
    so that no shorter question is read as a long one.
    """
    limit, scaling = data.query_limit, model.decoder.rope_scaling
    buckets = [limit]
    while len(buckets) < BUCKETS and buckets[-1] >= SHORTEST * RATIO:
        buckets.append(-(-buckets[-1] // RATIO))
    if scaling.kind == "longrope" and model.query.reads_decoder and limit > scaling.original_length:
        lower = max((size for size in buckets if size <= scaling.original_length), default=buckets[-1])
        buckets = [*(size for size in buckets if size != lower or size == limit), scaling.original_length]
    return tuple(sorted(buckets))


def bucket(length: int, buckets: Sequence[int]) -> int:
    """The shortest bucket that holds so many tokens."""
    return next(size for size in buckets if size >= length)
