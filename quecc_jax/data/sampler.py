"""In which order rows are read: epochs, each shuffled anew, of all sources together or of a weighted mixture.

Rows are counted through all sources from 0. Any stretch of the endless order can be computed without what
lies before it, a whole epoch of LLaVA's 665k rows in a tenth of a second, which grouping needs; grain's
shuffle and mix take 20 microseconds a row.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from cachetools import Cache, LRUCache, cachedmethod

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Odd, 2^64 over the golden ratio: the step of SplitMix64."""


def mixed_up(x: np.ndarray) -> np.ndarray:
    """uint64 [n] -> uint64 [n], one to one and without visible order: SplitMix64's finaliser
    (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(size: int, *seed: int) -> np.ndarray:
    """int64 [size], 0 .. size - 1 in an order that the seeds decide, under every version of NumPy."""
    # NumPy promises this for SeedSequence, but not for its generators.
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    return np.argsort(mixed_up(start + GOLDEN * np.arange(size, dtype=np.uint64)), kind="stable")


def spread(rows: int, count: int) -> np.ndarray:
    """bool [rows], of which `count` are true, as far from each other as they can be."""
    chosen = np.zeros(rows, bool)
    chosen[(2 * np.arange(count) + 1) * rows // (2 * count)] = True
    return chosen


def _starts(sizes: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def source_and_row(identity: int) -> tuple[int, int]:
    """Which source a sample is of, and which row of it, by its identity as `Sampler.ids` gives it."""
    return identity >> 32, identity & 0xFFFFFFFF


class Sampler:
    """An endless order of the rows of several sources.

    Without weights an epoch holds each row of all sources once. With weights every source has epochs of its
    own, and any stretch of the order holds rows of it by its weight, give or take one.

    Args:
      sizes: rows of each source.
      weights: share of each source, not normalised; None joins them.
      seed: decides the order.
      taken: bool [rows of all sources], those that take part; None takes all.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None,
        seed: int,
        taken: np.ndarray | None = None,
    ):
        self.starts = _starts(sizes)
        self._taken = None if taken is None else np.flatnonzero(taken)
        if taken is not None:
            sizes = [int(taken[a:b].sum()) for a, b in itertools.pairwise(self.starts)]
        self.sizes, self.seed = list(sizes), seed
        self.rows = sum(sizes)
        """Of all sources together that take part; so many are called an epoch of a weighted mixture too."""
        self.shares = None if weights is None else [weight / sum(weights) for weight in weights]

        # A stretch touches few epochs, but the next stretch touches them again.
        self._cache: Cache[object, np.ndarray] = LRUCache(32)

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start], the rows from the start-th of the order on."""
        found = self._counted(start, stop)
        return found if self._taken is None else self._taken[found]

    def _counted(self, start: int, stop: int) -> np.ndarray:
        """The same, counted through the rows that take part alone."""
        if self.shares is None:
            return self._of(0, self.rows, np.arange(start, stop))
        # The j-th row of a source with share w comes at time (j + 1/2) / w; one row comes per unit of
        # time, so that a few more than the stretch's own are enough to put into order.
        margin = len(self.shares) + 2
        first = [max(0, int(share * (start - margin)) - 1) for share in self.shares]
        last = [int(share * (stop + margin)) + 2 for share in self.shares]
        counts = [np.arange(a, b) for a, b in zip(first, last, strict=True)]
        times = [(count + 0.5) / share for count, share in zip(counts, self.shares, strict=True)]
        chosen = np.argsort(np.concatenate(times), kind="stable")[start - sum(first) : stop - sum(first)]
        rows = [
            start + self._of(number, size, count)
            for number, (start, size, count) in enumerate(
                zip(_starts(self.sizes)[:-1], self.sizes, counts, strict=True)
            )
        ]
        return np.concatenate(rows)[chosen]

    def _of(self, stream: int, size: int, counts: np.ndarray) -> np.ndarray:
        """The rows of one shuffled and repeated stream at ascending positions."""
        parts = [
            self._epoch(stream, size, epoch)[counts[counts // size == epoch] % size]
            for epoch in np.unique(counts // size).tolist()
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    @cachedmethod(lambda self: self._cache)
    def _epoch(self, stream: int, size: int, epoch: int) -> np.ndarray:
        return permutation(size, self.seed, stream, epoch)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """int64 identities of rows: source * 2^32 + row of the source; -1 stays -1."""
        source = np.searchsorted(self.starts, rows, side="right") - 1
        return np.where(rows < 0, -1, (source << 32) + rows - self.starts[source])
