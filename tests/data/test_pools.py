"""Packed rows that share room for images: what a pool holds, and that its rows hold what they would on their own."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from benchmarks.packing import compare
from quecc_jax.config.shapes import row_limit
from quecc_jax.data.batch import Batch, batch_spec
from quecc_jax.data.collate import Collate
from quecc_jax.data.pipeline import Take, make_iterator, plan_batches
from quecc_jax.data.plans.packing import BatchPlan, Packed, pack, pools
from quecc_jax.data.sampler import Sampler
from quecc_jax.data.sources.open import open_sources
from quecc_jax.data.text.queries import question_ids
from quecc_jax.errors import UserError
from tests.data.test_packing import assert_same, data, rows_file, take  # noqa: F401
from tests.data.test_packing_plans import ONE_BUCKET, lengths_of


@examples(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_pools_hold_everything_once_within_their_room(drawn):
    pooled, images, length = (drawn.draw(st.integers(*ends)) for ends in ((1, 4), (0, 9), (1, 40)))
    conversation = st.tuples(st.integers(0, length), st.integers(0, images))
    tokens, image_counts = (
        np.array(drawn.draw(st.lists(conversation, max_size=40)), np.int32).reshape(-1, 2).T
    )
    found = pools(tokens, image_counts, length, images, pooled)
    rows = [row for pool in found for row in pool]
    assert sorted(np.concatenate([[], *rows]).tolist()) == list(range(len(tokens)))
    for pool in found:
        assert len(pool) == pooled and any(len(row) for row in pool)
        assert sum(image_counts[row].sum() for row in pool) <= images
        assert all(tokens[row].sum() <= length for row in pool)
    if pooled == 1:
        assert [row.tolist() for row in rows] == [
            r.tolist() for r in pack(tokens, image_counts, length, images)
        ]
    # Rows that each take no more than their share need no more pools than that.
    share = images // pooled
    if not image_counts.size or image_counts.max() <= share:
        assert len(found) <= -(-len(pack(tokens, image_counts, length, share)) // pooled)


@pytest.mark.parametrize("pooled", [2, 4])
def test_epochs_are_whole_pools_and_any_batch_can_be_made_without_those_before_it(pooled):
    measures = lengths_of(700)

    def fresh():
        return Packed(Sampler([300, 400], None, 2), measures, ONE_BUCKET, 8, 64, 512, 4 * pooled, pooled)

    through = fresh()
    assert through.epoch() % pooled == 0
    batches = [through[k] for k in range(-(-through.epoch(1) // 8))]
    rows = [row[row >= 0] for batch in batches for row in batch.ids]
    for first, last in ((0, through.epoch()), (through.epoch(), through.epoch(1))):
        epoch = np.concatenate(rows[first:last])
        assert sorted((epoch & 0xFFFFFFFF) + 300 * (epoch >> 32)) == list(range(700))
    for number in (30, 3, 17, 0):
        again = fresh()[number]
        assert np.array_equal(again.ids, batches[number].ids) and again[1:] == batches[number][1:]


@pytest.mark.parametrize(
    ("visual_tokens", "images", "least"), [(1, 24, 0.95), (16, 23, 0.94), (36, 22, 0.93)]
)
def test_room_of_llava_like_pools_is_used(visual_tokens, images, least):
    alone, shared = (
        compare(30_000, 2048, 16, visual_tokens, *given)["packed"] for given in ((0,), (images, 8192, 4))
    )
    assert shared.images > least > alone.images + 0.2
    assert shared.tokens > alone.tokens - 0.015


def pooled(data, rows=2, images=6):  # noqa: F811
    return dataclasses.replace(data, batching="packed", pooled_rows=rows, packed_images=images)


def test_rows_of_a_pool_are_those_rows_by_themselves(data, model):  # noqa: F811
    shared = pooled(data, 4, 14)
    sources, stride = open_sources(shared, model), model.num_output_tokens
    plans, _ = plan_batches(sources, shared, model, 8, 0)
    together, apart = Collate(sources, shared, model), Collate(sources, pooled(data, 1, 14), model)
    moved = 0
    for number in range(4):
        batch, read = together(plans[number])
        alone, same = apart(BatchPlan(plans[number].ids, plans[number].length, 14))
        assert read == same and batch.pixels.shape[:2] == (2, 14)
        for name in ("tokens", "labels", "positions", "segments"):
            assert np.array_equal(getattr(batch, name), getattr(alone, name)), name
        for row in range(8):
            pool, before = row // 4, 0
            for other in range(pool * 4, row):
                before += int((alone.query_ends[other] >= 0).sum())
            count = int((alone.query_ends[row] >= 0).sum())
            here = alone.slots[row] >= 0
            assert np.array_equal(batch.slots[row][here], alone.slots[row][here] + before * stride)
            assert (batch.slots[row][~here] == alone.slots[row][~here]).all()
            moved += before > 0 and count > 0
            for k in range(count):
                assert np.array_equal(batch.pixels[pool, before + k], alone.pixels[row, k])
                asked = [
                    question_ids(one.queries[r], one.query_segments[r], one.query_ends[r, i]).tolist()
                    for one, r, i in ((batch, pool, before + k), (alone, row, k))
                ]
                assert asked[0] == asked[1]
        held = [(alone.query_ends[p * 4 : p * 4 + 4] >= 0).sum() for p in range(2)]
        assert (batch.query_ends >= 0).sum(axis=1).tolist() == held
        assert not any(batch.pixels[p, n:].any() for p, n in enumerate(held))
    assert moved > 8


def test_shapes_are_those_of_the_spec_and_questions_have_room_for_all_rows(data, model):  # noqa: F811
    shared = dataclasses.replace(pooled(data, 4, 14), query_length=0)
    assert row_limit(shared, 14) == 4 * data.max_length
    spec = batch_spec(model, shared, 8)
    with make_iterator(shared, model, 8, 0) as iterator:
        (batch,) = take(iterator, 1)
    for name, wanted, array in zip(Batch._fields, spec, batch, strict=True):
        if name not in ("ids", "queries", "query_segments"):
            assert (wanted is None) == (array is None), name
            assert wanted is None or (wanted.shape, wanted.dtype) == (array.shape, array.dtype), name
    assert len(batch.queries) == 2 and batch.queries.shape[1] <= spec.queries.shape[1]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_read_whole_pools_and_a_stream_goes_on(data, model, count):  # noqa: F811
    shared = pooled(data)
    with make_iterator(shared, model, 16, 0) as alone:
        whole = take(alone, 3)
        state = json.loads(json.dumps(alone.get_state()))
        rest = take(alone, 2)
    for share in np.arange(16).reshape(count, -1):
        with make_iterator(shared, model, 16, 0, rows=share) as iterator:
            parts = take(iterator, 3)
        for batch, part in zip(whole, parts, strict=True):

            def own(x: Any, share: Any = share) -> Any:
                size = 16 // len(x)
                return x[share[::size] // size]

            assert_same(part, jax.tree.map(own, batch))
    with make_iterator(shared, model, 16, 0) as fresh:
        fresh.set_state(state)
        for one, two in zip(rest, take(fresh, 2), strict=True):
            assert_same(one, two)
    larger = dataclasses.replace(shared, pooled_rows=4)
    with make_iterator(larger, model, 16, 0) as other, pytest.raises(UserError, match="stream"):
        other.set_state(state)


@pytest.mark.parametrize("rows", [[0], [1, 2], [0, 1, 2], [1, 0], [0, 1, 3, 2]])
def test_parts_of_pools_are_refused(rows):
    Take([2, 3, 0, 1], 2)
    with pytest.raises(UserError, match="whole pools"):
        Take(rows, 2)


def test_a_batch_of_broken_pools_is_refused(data, model):  # noqa: F811
    with pytest.raises(UserError, match=r"7 rows of a batch are not whole pools of data\.pooled_rows 2"):
        make_iterator(pooled(data), model, 7, 0)
