"""Batches whose V is drawn: when which comes, and that only the images' slots differ."""

import dataclasses
import itertools

import numpy as np
import pytest

from quecc_jax.config import QueccConfig
from quecc_jax.config.shapes import first_token
from quecc_jax.data.batch import IGNORE
from quecc_jax.data.elastic import drawn, padded_lengths, row_length
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.train.logs.meter import visual_tokens
from tests.compressors import fitting
from tests.data.every_row import eval_batches

MOSAIC, READING = ("mosaic", "train"), ("reading", "train")
VALUES = (1, 4, 16)


@pytest.fixture
def elastic(model):
    return dataclasses.replace(model, compressor=QueccConfig(elastic=VALUES, heads=2))


def test_each_v_comes_once_a_turn_in_an_order_that_the_seed_decides():
    def sequence(seed):
        return [drawn(VALUES, seed, number) for number in range(60)]

    turns = {tuple(sequence(0)[k : k + 3]) for k in range(0, 60, 3)}
    assert turns == set(itertools.permutations(VALUES))
    assert sequence(0) == sequence(0) != sequence(1)


@pytest.mark.parametrize(
    "length, largest, v, expected",
    [(56, 36, 1, 24), (56, 36, 36, 56), (2048, 36, 1, 2048), (2048, 576, 1, 1536), (37, 16, 1, 22)],
)
def test_a_row_is_as_short_as_its_v_allows(settings, length, largest, v, expected):
    assert row_length(dataclasses.replace(settings(MOSAIC), max_length=length), largest, v) == expected


def conversations(batch, model, v):
    """(tokens without slots, labels of them, slots from the first of each image, query) of each segment."""
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segments[row].max() + 1):
            here = batch.segments[row] == segment
            slots, text = batch.slots[row][here], batch.slots[row][here] < 0
            assert np.array_equal(batch.positions[row][here], np.arange(here.sum()))
            images, places = np.divmod(slots[~text], model.num_output_tokens)
            for image in np.unique(images):
                own = places[images == image]
                assert np.array_equal(own, first_token(model, v) + np.arange(v))
                assert batch.query_ends[row, image] >= 0
            yield (
                tuple(batch.tokens[row][here][text]),
                tuple(batch.labels[row][here][text]),
                tuple(np.flatnonzero(~text)[::v]),
                len(np.unique(images)),
            )


@pytest.mark.parametrize(
    "name, batching", [("quecc", "pad"), ("quecc", "grouped"), ("quecc", "packed"), ("mqt", "pad")]
)
def test_only_the_slots_of_an_image_differ(settings, model, elastic, name, batching, tmp_path):
    """Against the batches that the model of one V, the largest, gets from the same seed."""
    data = settings(
        MOSAIC, READING, batching=batching, packed_images=3, cache=str(tmp_path), lookahead_rows=40
    )
    compressor = fitting(name, elastic=VALUES, heads=2, queries=16)
    elastic = dataclasses.replace(elastic, compressor=compressor)
    assert elastic.num_output_tokens == (16 if name == "mqt" else 21)
    fixed = dataclasses.replace(model, compressor=QueccConfig(kernel=1, stride=1, heads=2))
    with make_iterator(data, elastic, 6, 5) as ours, make_iterator(data, fixed, 6, 5) as theirs:
        for number in range(6):
            one, other, v = next(ours), next(theirs), drawn(VALUES, 5, number)
            assert visual_tokens(one, elastic.num_output_tokens) == v
            assert one.tokens.shape[1] == (
                row_length(data, 16, v) if batching == "pad" else other.tokens.shape[1]
            )
            for name in ("queries", "query_segments", "query_ends", "pixels", "ids"):
                assert np.array_equal(getattr(one, name), getattr(other, name))
            expected = [
                (text, labels, tuple(place - k * (16 - v) for k, place in enumerate(places)), count)
                for text, labels, places, count in conversations(other, fixed, 16)
            ]
            assert list(conversations(one, elastic, v)) == expected


def test_processes_and_resumed_runs_draw_the_same_v(settings, elastic):
    data = settings(MOSAIC)
    with make_iterator(data, elastic, 6, 1) as whole:
        batches = [next(whole) for _ in range(8)]
    with make_iterator(data, elastic, 6, 1, rows=[4, 5]) as part:
        assert [next(part).tokens.shape[1] for _ in range(4)] == [b.tokens.shape[1] for b in batches[:4]]
        state = part.get_state()
    assert state["elastic"] == [1, 4, 16]
    with make_iterator(data, elastic, 6, 1) as rest:
        rest.set_state(state)
        for batch in batches[4:]:
            assert np.array_equal(next(rest).slots, batch.slots)


def test_text_is_the_same_at_every_v_and_fits_the_shortest_row(text_pool, settings, elastic):
    """Documents that are longer than the rows of V = 1 are cut at every V, and counted."""
    source = dataclasses.replace(settings(MOSAIC).sources[0], path=str(text_pool.directory))
    data = settings(MOSAIC, template="plain", labels="all", max_length=32)
    data = dataclasses.replace(data, sources=(source,))
    shortest = min(padded_lengths(data, elastic))
    assert shortest == 17 + 15
    data = dataclasses.replace(data, max_length=31)
    assert min(padded_lengths(data, elastic)) == 16
    with make_iterator(data, elastic, 8, 0) as iterator:
        lengths = [(next(iterator).segments > 0).sum(axis=1).max() for _ in range(6)]
        assert set(lengths) == {16} and iterator.tally.truncated
    blind = dataclasses.replace(data, images_per_row=0)
    with make_iterator(blind, elastic, 8, 0) as iterator:
        assert {next(iterator).tokens.shape for _ in range(3)} == {(8, 31)}


def test_evaluation_lays_out_the_largest(settings, elastic):
    batch = next(eval_batches(settings(MOSAIC), elastic, 4))
    assert visual_tokens(batch, elastic.num_output_tokens) == 16 and batch.slots.max() == 20
    assert (batch.labels != IGNORE).any()
