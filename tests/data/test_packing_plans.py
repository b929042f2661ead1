"""Which rows share a batch: nothing lost or repeated, LLaVA's grouping, rows packed within their room."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing import compare
from quecc_jax.config import DataConfig
from quecc_jax.data.plans.packing import Grouped, Packed, Padded, Queries, RowLengths, length_buckets, pack
from quecc_jax.data.sampler import Sampler

ONE_BUCKET = Queries((512,), np.zeros(0, np.int32))


def lengths_of(rows: int, seed: int = 0, left_out: float = 0.02) -> RowLengths:
    """Lengths like those of conversations: log-normal, one row in eight of text alone, some left out."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.lognormal(4.5, 0.8, rows), 512).astype(np.int32)
    image_counts = (rng.random(rows) > 0.125).astype(np.int32) * rng.choice([1, 1, 1, 2], rows)
    bad = rng.random(rows) < left_out
    fields = (tokens, image_counts, np.minimum(tokens // 2 + 1, 128) * (image_counts > 0))
    return RowLengths(*(np.where(bad, 0, field).astype(np.int32) for field in fields))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_packed_rows_hold_everything_once_within_their_room(data):
    images, length = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 40))
    sizes = data.draw(st.lists(st.tuples(st.integers(0, length), st.integers(0, images)), max_size=40))
    tokens, image_counts = np.array(sizes, np.int32).reshape(-1, 2).T
    packed = pack(tokens, image_counts, length, images)
    assert sorted(np.concatenate([[], *packed]).tolist()) == list(range(len(sizes)))
    for row in packed:
        assert len(row) and tokens[row].sum() <= length and image_counts[row].sum() <= images
    # Best fit leaves no two rows that would fit into one: the later would never have been begun.
    for one, other in itertools.pairwise(packed):
        both = np.concatenate([one, other])
        assert tokens[both].sum() > length or image_counts[both].sum() > images


def plain_groups(tokens, with_images, batch_size, window, rng):
    """LLaVA's sampler by its description: shuffle each modality, cut it into megabatches, sort each by
    length, shuffle all batches; what fills no batch comes last. Returns lists of rows."""
    batches, left = [], []
    for part in (np.flatnonzero(with_images), np.flatnonzero(~with_images)):
        part = rng.permutation(part)
        whole = len(part) - len(part) % batch_size
        left += part[whole:].tolist()
        for start in range(0, whole, window):
            mega = sorted(part[start : min(start + window, whole)].tolist(), key=lambda row: -tokens[row])
            batches += [mega[k : k + batch_size] for k in range(0, len(mega), batch_size)]
    batches = [batches[k] for k in rng.permutation(len(batches))]
    return batches + [left[k : k + batch_size] for k in range(0, len(left), batch_size)]


def waste(batches, tokens):
    """Mean over batches of the share of positions that pad rows to the batch's longest."""
    return np.mean([1 - tokens[rows].mean() / tokens[rows].max() for rows in batches])


@pytest.mark.parametrize("window", [16, 256])
def test_grouped_batches_are_those_of_the_original_sampler_in_distribution(window):
    measures = lengths_of(5003, left_out=0)
    order, with_images = Sampler([5003], None, 1), measures.image_counts > 0
    grouped = Grouped(order, measures, ONE_BUCKET, 16, window, [512], 2)
    ours = [draw.ids[draw.ids >= 0] for draw in (grouped[k] for k in range(grouped.batches))]
    theirs = plain_groups(measures.tokens, with_images, 16, window, np.random.default_rng(0))
    assert len(ours) == len(theirs)
    for batches in (ours, theirs):
        single = [len(set(with_images[rows].tolist())) == 1 for rows in batches]
        assert sum(single) >= len(batches) - 2
    assert abs(waste(ours, measures.tokens) - waste(theirs, measures.tokens)) < 0.02
    # The megabatch decides how alike the lengths are.
    assert waste(ours, measures.tokens) < (0.15 if window == 256 else 0.75)
    # Lengths come in random order: a batch tells nothing of the next.
    means = np.array([measures.tokens[rows].mean() for rows in ours])
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.15
    order_of_modalities = np.array([with_images[rows].mean() > 0.5 for rows in ours])
    text = np.flatnonzero(~order_of_modalities)
    assert len(text) > 30 and text.min() < 30 and text.max() > len(ours) - 30


def test_left_out_rows_spread_over_grouped_batches():
    measures = lengths_of(3000, left_out=0.1)
    grouped = Grouped(Sampler([3000], None, 0), measures, ONE_BUCKET, 16, 500, [512], 2)
    empty = [
        (measures.tokens[draw.ids[draw.ids >= 0]] == 0).sum()
        for draw in (grouped[k] for k in range(grouped.batches))
    ]
    assert max(empty) <= 8 and np.mean(empty) == pytest.approx(1.6, abs=0.3)


def test_a_grouped_batch_is_as_long_as_it_needs_and_text_has_no_image_places():
    measures = lengths_of(2000)
    data = DataConfig(max_length=512, num_length_buckets=3)
    assert length_buckets(data) == [128, 256, 512]
    assert length_buckets(DataConfig(max_length=5, num_length_buckets=2)) == [3, 5]
    grouped = Grouped(Sampler([2000], None, 0), measures, ONE_BUCKET, 8, 200, length_buckets(data), 2)
    shapes = set()
    for number in range(grouped.batches):
        draw = grouped[number]
        rows = draw.ids[draw.ids >= 0]
        longest = measures.tokens[rows].max()
        assert longest <= draw.length and (draw.length == 128 or longest > draw.length / 2)
        assert draw.images == (2 if measures.image_counts[rows].any() else 0)
        shapes.add((draw.length, draw.images))
    assert len(shapes) == 6


def batching(kind, order, measures, batch_size, window):
    if kind == "pad":
        return Padded(order, ONE_BUCKET, batch_size, 512, 2)
    if kind == "grouped":
        return Grouped(order, measures, ONE_BUCKET, batch_size, window, [128, 512], 2)
    return Packed(order, measures, ONE_BUCKET, batch_size, window, 512, 4)


def epochs(kind, drawn, rows, batch_size, count):
    """Places [first, last) of the batch rows of each of some epochs."""
    if kind == "pad":
        return [(k * rows, (k + 1) * rows) for k in range(count)]
    if kind == "grouped":
        return [(k * drawn.batches * batch_size, (k + 1) * drawn.batches * batch_size) for k in range(count)]
    ends = [0, *(drawn.epoch(k) for k in range(count))]
    return list(itertools.pairwise(ends))


@pytest.mark.parametrize("kind", ["pad", "grouped", "packed"])
@pytest.mark.parametrize(
    ("rows", "batch_size", "window"), [(997, 16, 100), (40, 16, 8192), (5, 8, 3), (64, 4, 1)]
)
def test_every_epoch_holds_every_row_once(kind, rows, batch_size, window):
    measures = lengths_of(rows)
    drawn = batching(kind, Sampler([rows], None, 5), measures, batch_size, window)
    spans = epochs(kind, drawn, rows, batch_size, 3)
    batches = [drawn[k].ids.reshape(batch_size, -1) for k in range(-(-spans[-1][1] // batch_size))]
    flat = [row[row >= 0].tolist() for batch in batches for row in batch]
    seen = [[one for row in flat[first:last] for one in row] for first, last in spans]
    assert all(sorted(epoch) == list(range(rows)) for epoch in seen)
    assert rows < 10 or len(set(map(tuple, seen))) == 3


@pytest.mark.parametrize("kind", ["pad", "grouped", "packed"])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_any_batch_can_be_made_without_those_before_it(kind, weights):
    measures = lengths_of(700)

    def fresh():
        return batching(kind, Sampler([300, 400], weights, 2), measures, 8, 64)

    through = fresh()
    drawn = [through[k] for k in range(120)]
    for number in (119, 3, 64, 0, 65):
        again = fresh()[number]
        assert np.array_equal(again.ids, drawn[number].ids) and again[1:] == drawn[number][1:]
    back = fresh()
    assert all(np.array_equal(back[k].ids, drawn[k].ids) for k in (50, 20, 51, 0))


def test_packed_rows_are_full_of_tokens_where_images_leave_room():
    measures = lengths_of(4000)
    packed = Packed(Sampler([4000], None, 0), measures, ONE_BUCKET, 4, 1000, 512, 16)
    assert measures.tokens.sum() / packed.epoch() / 512 > 0.97
    narrow = Packed(Sampler([4000], None, 0), measures, ONE_BUCKET, 4, 1000, 512, 2)
    assert narrow.epoch() == pytest.approx(measures.image_counts.sum() / 2, rel=0.02)


@pytest.mark.parametrize(("visual_tokens", "least"), [(1, 0.95), (36, 0.95), (576, 0.85)])
def test_packed_rows_of_llava_like_lengths_hold_little_padding(visual_tokens, least):
    uses = compare(40_000, 2048, 16, visual_tokens)
    assert uses["packed"].tokens > least and uses["packed"].positions < uses["pad"].positions / 2


def test_the_order_of_grouped_batches_never_changes():
    """Written down once, two epochs: runs continue only under the order that they began with."""
    rows = np.arange(11, dtype=np.int32)
    measures = RowLengths(10 + rows, (rows + 1) % 2, np.zeros(11, np.int32))
    grouped = Grouped(Sampler([11], None, 0), measures, ONE_BUCKET, 2, 4, [64], 1)
    first = [[4, 0], [10, 8], [3, 1], [6, 2], [9, -1], [7, 5]]
    second = [[9, 7], [5, 1], [2, 0], [3, -1], [10, 4], [8, 6]]
    assert [grouped[number].ids.tolist() for number in range(12)] == first + second
