"""Plans batches: of rows as they come, grouped by modality and length, or packed into rows.

Each is an endless sequence of `BatchPlan`s, alike in every process: any of them can be asked for by number,
so that a run continues anywhere, whatever its number of processes and workers.
"""

import dataclasses
import hashlib
import heapq
import math
import sys
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from cachetools import Cache, LRUCache, cachedmethod

from quecc_jax.config import DataConfig
from quecc_jax.data.sampler import Sampler, permutation
from quecc_jax.data.text.queries import bucket


class BatchPlan(NamedTuple):
    """What one batch is made of."""

    ids: np.ndarray
    """int64 [B], or [B, C] where rows hold up to C conversations: identities, -1 for none."""
    length: int
    """Tokens S of a row."""
    images: int
    """Images I of a row, or of a pool of rows."""
    query_length: int = 0
    """Tokens Q of a row's queries; 0 for the shortest bucket that holds those of the rows."""
    visual_tokens: int = 0
    """Slots V of an image where that is drawn; 0 where it is not."""
    pooled: int = 1
    """Rows of a pool: neighbours whose images share room."""


class RowLengths(NamedTuple):
    """How long rows are, known before their images are read: int32 [rows] each."""

    tokens: np.ndarray
    """Visual tokens included; 0 for a row that is left out."""
    image_counts: np.ndarray
    """Crops with tiles."""
    queries: np.ndarray
    """Tokens of the questions about a row's images."""

    @property
    def sizes(self) -> np.ndarray:
        """int32 [rows] what a conversation needs of a packed row, where questions have as much room as tokens.
        They are fewer, but where a template leaves the human's words out."""
        return np.maximum(self.tokens, self.queries)

    def digest(self) -> str:
        """Short hash: a stream that was planned with other lengths cannot be continued."""
        drawn_by = (self.sizes, self.image_counts)
        content = b"".join(np.ascontiguousarray(field, np.int32).tobytes() for field in drawn_by)
        return hashlib.sha256(content).hexdigest()[:16]


class Queries(NamedTuple):
    """How long the questions of a batch's rows may be."""

    buckets: tuple[int, ...]
    """`queries.query_buckets`."""
    lengths: np.ndarray
    """int32 [rows], `RowLengths.queries`; of no rows where there is one bucket."""

    def __call__(self, rows: Iterable[int | np.ndarray]) -> int:
        """The bucket of a batch of these rows, each one number or those of a packed row."""
        if len(self.buckets) == 1:
            return self.buckets[0]
        return bucket(max((int(self.lengths[row].sum()) for row in rows), default=0), self.buckets)


@dataclasses.dataclass(frozen=True, eq=False)
class Padded(Sequence[BatchPlan]):
    """B rows as the order has them; batches run across the ends of epochs."""

    order: Sampler
    queries: Queries
    batch_size: int
    """B."""
    length: int
    """Tokens S of a row."""
    images: int
    """Images I of a row."""

    def __len__(self) -> int:
        return sys.maxsize

    def epoch(self) -> int:
        """Rows of the first epoch."""
        return self.order.rows

    def __getitem__(self, number: int) -> BatchPlan:  # type: ignore[override]
        start = number * self.batch_size
        rows = self.order(start, start + self.batch_size)
        return BatchPlan(self.order.ids(rows), self.length, self.images, self.queries(rows))

    def steps(self, epochs: Fraction) -> int:
        """Batches that hold so many epochs, the last of which may begin another."""
        return math.ceil(epochs * self.order.rows / self.batch_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Grouped(Sequence[BatchPlan]):
    """Batches of one modality and of similar lengths, in random order, as LLaVA's sampler makes them.

    An epoch's rows with images fill batches, and so do those without; what is left of both shares the
    one or two batches that may be mixed, the last of which may have empty rows. The batches of each
    modality are formed window by window, by length. A batch has the shortest length of `lengths` that
    holds its rows, and room for images only if it has any: text alone spares the tower's work.
    """

    order: Sampler
    of_rows: RowLengths
    """Of the order's rows."""
    queries: Queries
    batch_size: int
    """B."""
    window: int
    """Rows that are sorted together; B gives batches of random lengths, as the original has them."""
    lengths: Sequence[int]
    """Tokens S that a row may have, ascending; see `length_buckets`."""
    images: int
    """Images I of a row."""
    _cache: Cache[object, np.ndarray] = dataclasses.field(default_factory=lambda: LRUCache(1))

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return -(-self.order.rows // self.batch_size)

    def steps(self, epochs: Fraction) -> int:
        """Batches of so many epochs."""
        return math.ceil(epochs * self.batches)

    def __len__(self) -> int:
        return sys.maxsize

    def epoch(self) -> int:
        """Rows of the first epoch, empty ones included."""
        return self.batches * self.batch_size

    def __getitem__(self, number: int) -> BatchPlan:  # type: ignore[override]
        epoch, batch = divmod(number, self.batches)
        rows = self._grouped(epoch)[batch]
        real = rows[rows >= 0]
        longest = int(self.of_rows.tokens[real].max(initial=0))
        length = next(length for length in self.lengths if length >= longest)
        images = self.images if self.of_rows.image_counts[real].any() else 0
        return BatchPlan(self.order.ids(rows), length, images, self.queries(real))

    @cachedmethod(lambda self: self._cache)
    def _grouped(self, epoch: int) -> np.ndarray:
        """int64 [batches, B], the rows of every batch of an epoch, -1 for an empty row."""
        size = self.order.rows
        rows = self.order(epoch * size, (epoch + 1) * size)
        tokens, image_counts = self.of_rows.tokens[rows], self.of_rows.image_counts[rows]
        # Rows that are left out go where the one before goes, lest they gather in batches of nothing.
        before = np.maximum.accumulate(np.where(tokens > 0, np.arange(size), 0))
        tokens, image_counts = tokens[before], image_counts[before]
        batches, left = list[np.ndarray](), list[np.ndarray]()
        for part in (np.flatnonzero(image_counts), np.flatnonzero(image_counts == 0)):
            whole = len(part) // self.batch_size * self.batch_size
            left.append(part[whole:])
            full = part[:whole].reshape(-1, self.batch_size)
            for piece in np.array_split(full, max(1, round(whole / self.window))):
                longest = np.argsort(-tokens[piece], axis=None, kind="stable")
                batches.append(rows[piece.reshape(-1)[longest]].reshape(piece.shape))
        rest = rows[np.concatenate(left)]
        rest = np.concatenate([rest, np.full(-len(rest) % self.batch_size, -1)])
        batches.append(rest.reshape(-1, self.batch_size))
        return np.concatenate(batches)[permutation(self.batches, self.order.seed, epoch, 1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Packed(Sequence[BatchPlan]):
    """Rows of several conversations each, packed window by window.

    A window of the order is packed as a whole, and what it fills comes in random order, so that a window
    is all that needs to be looked ahead. Windows end where epochs do: the packed rows of an epoch hold
    each of its rows once. Batches run across the ends of windows and epochs.
    """

    order: Sampler
    of_rows: RowLengths
    """Of the order's rows."""
    queries: Queries
    batch_size: int
    """B packed rows."""
    window: int
    """About how many rows are packed together."""
    length: int
    """Tokens S of a packed row."""
    images: int
    """Images I of a pool."""
    pooled: int = 1
    """Packed rows of a pool, a divisor of B. Windows consist of whole pools, some rows of which may be empty."""
    _ends: list[int] = dataclasses.field(default_factory=list)
    """Packed rows up to the end of each window so far."""
    # A batch may begin in the window before.
    _cache: Cache[object, list[np.ndarray]] = dataclasses.field(default_factory=lambda: LRUCache(2))

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return max(1, round(self.order.rows / self.window))

    @property
    def conversations(self) -> int:
        """Conversations of the first epoch, without those that are left out; at least one."""
        return max(1, int(np.count_nonzero(self.of_rows.tokens[self.order(0, self.order.rows)])))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> BatchPlan:  # type: ignore[override]
        first = number * self.batch_size
        rows = [self._packed_row(first + k) for k in range(self.batch_size)]
        ids = np.full((len(rows), max(map(len, rows))), -1, np.int64)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = self.order.ids(row)
        pools = [np.concatenate(rows[k : k + self.pooled]) for k in range(0, len(rows), self.pooled)]
        return BatchPlan(ids, self.length, self.images, self.queries(pools), pooled=self.pooled)

    def epoch(self, epoch: int = 0) -> int:
        """Packed rows of the epochs up to this one, itself included."""
        while len(self._ends) < (epoch + 1) * self.windows:
            self._extend()
        return self._ends[(epoch + 1) * self.windows - 1]

    def steps(self, epochs: Fraction) -> int:
        """Batches that hold so many epochs, the last of which may begin another. Of a part of an epoch, the packed
        rows count in proportion."""
        whole, part = divmod(epochs, 1)
        before = self.epoch(whole - 1) if whole else 0
        more = part * (self.epoch(whole) - before) if part else 0
        return math.ceil((before + more) / self.batch_size)

    def _packed_row(self, number: int) -> np.ndarray:
        while not self._ends or self._ends[-1] <= number:
            self._extend()
        window = int(np.searchsorted(self._ends, number, side="right"))
        return self._window(window)[number - (self._ends[window - 1] if window else 0)]

    def _extend(self) -> None:
        before = self._ends[-1] if self._ends else 0
        self._ends.append(before + len(self._window(len(self._ends))))

    @cachedmethod(lambda self: self._cache)
    def _window(self, number: int) -> list[np.ndarray]:
        """The packed rows of one window."""
        epoch, window = divmod(number, self.windows)
        size = self.order.rows
        first, last = (size * k // self.windows for k in (window, window + 1))
        rows = self.order(epoch * size + first, epoch * size + last)
        sizes, image_counts = self.of_rows.sizes[rows], self.of_rows.image_counts[rows]
        packed = pools(sizes, image_counts, self.length, self.images, self.pooled)
        shuffled = permutation(len(packed), self.order.seed, number, 2)
        return [rows[row] for k in shuffled for row in packed[k]]


def pools(
    tokens: np.ndarray, image_counts: np.ndarray, length: int, images: int, pooled: int
) -> list[list[np.ndarray]]:
    """Fills packed rows as `pack` does, and gathers them into pools that share room for images.

    A row may have more images than its share of the room: the more it may, the better rows are filled with tokens,
    and the harder it is to find it neighbours that have fewer. Of some limits, the one is taken that needs the fewest
    pools.

    Args:
      tokens, image_counts, length: as for `pack`.
      images: images of a pool.
      pooled: rows of a pool.

    Returns:
      The rows of each pool, `pooled` of them, the last of which may be empty.
    """
    if pooled == 1:
        return [[row] for row in pack(tokens, image_counts, length, images)]
    found: list[list[np.ndarray]] = []
    share, most = images / pooled, int(image_counts.max(initial=0))
    for limit in sorted({min(images, max(most, round(share * k))) for k in (1, 1.5, pooled)})[::-1]:
        rows = pack(tokens, image_counts, length, limit)
        gathered = _gather(np.array([image_counts[row].sum() for row in rows]), images, pooled)
        if not found or len(gathered) < len(found):
            found = [[rows[k] for k in pool] for pool in gathered]
        if len(gathered) == -(-len(rows) // pooled):
            break
    empty = np.zeros(0, np.int64)
    return [pool + [empty] * (pooled - len(pool)) for pool in found]


def _gather(image_counts: np.ndarray, images: int, pooled: int) -> list[list[int]]:
    """Rows with these images, at most `images` each, in as few pools as are found: row after row, those with the most
    images first, goes to the pool with the fewest that has room for a row."""
    count = max(-(-len(image_counts) // pooled), -(-int(image_counts.sum()) // images) if images else 0)
    heaviest = np.argsort(-image_counts, kind="stable").tolist()
    while True:
        gathered: list[list[int]] = [[] for _ in range(count)]
        heap = [(0, k) for k in range(count)]
        for row in heaviest:
            held, k = heapq.heappop(heap)
            held += int(image_counts[row])
            if held > images:
                break
            gathered[k].append(row)
            if len(gathered[k]) < pooled:
                heapq.heappush(heap, (held, k))
        else:
            return gathered
        count += 1


@dataclasses.dataclass(frozen=True, eq=False)
class OneEpoch(Sequence[BatchPlan]):
    """The first epoch of a plan alone; the last batch's rows behind it are empty."""

    plans: Padded | Grouped | Packed
    batch_size: int
    """B."""

    def __len__(self) -> int:
        return -(-self.plans.epoch() // self.batch_size)

    def __getitem__(self, number: int) -> BatchPlan:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        plan = self.plans[number]
        left = self.plans.epoch() - number * self.batch_size
        ids = plan.ids.copy()
        ids[left:] = -1
        return plan._replace(ids=ids)


def pack(tokens: np.ndarray, image_counts: np.ndarray, length: int, images: int) -> list[np.ndarray]:
    """Fills packed rows with conversations, each into the fullest that still has room for it (best fit).

    Of two orders of filling, the one that needs fewer packed rows is taken: as they come, which wastes less
    where many short conversations would use up the image slots of a row, and the longest first, which
    wastes less where only a few fit into a row.

    Args:
      tokens: int [n], at most `length` each.
      image_counts: int [n], at most `images` each.
      length: tokens of a packed row.
      images: images of a packed row.

    Returns:
      The conversations in each packed row, as numbers among the n.
    """
    longest = np.argsort(-tokens, kind="stable")
    as_they_come = _best_fit(tokens, image_counts, length, images)
    by_length = _best_fit(tokens[longest], image_counts[longest], length, images)
    if len(by_length) < len(as_they_come):
        return [longest[row] for row in by_length]
    return [np.array(row) for row in as_they_come]


def _best_fit(tokens: np.ndarray, image_counts: np.ndarray, length: int, images: int) -> list[list[int]]:
    # Packed rows by the images and tokens that they have room for; bit t of a mask says whether any
    # has room for t tokens.
    rooms: list[dict[int, list[list[int]]]] = [{} for _ in range(images + 1)]
    masks = [0] * (images + 1)
    packed: list[list[int]] = []
    for number, (size, needed) in enumerate(zip(tokens.tolist(), image_counts.tolist(), strict=True)):
        room, slots = length + 1, -1
        for left in range(needed, images + 1):
            fitting = masks[left] >> size
            if fitting and (least := size + (fitting & -fitting).bit_length() - 1) < room:
                room, slots = least, left
        if slots < 0:
            room, slots = length, images
            row: list[int] = []
            packed.append(row)
        else:
            same = rooms[slots][room]
            row = same.pop()
            if not same:
                masks[slots] ^= 1 << room
        row.append(number)
        rooms[slots - needed].setdefault(room - size, []).append(row)
        masks[slots - needed] |= 1 << (room - size)
    return packed


def length_buckets(data: DataConfig) -> list[int]:
    """Lengths that a grouped batch may have, ascending: data.max_length, a half, a quarter, ...."""
    return sorted({-(-data.max_length // 2**k) for k in range(data.num_length_buckets)})
