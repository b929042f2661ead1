"""Packed batches, and what all three batchings promise: every row once, exactly resumable, nothing left."""

import dataclasses
import json
import threading
from typing import Any

import jax
import numpy as np
import psutil
import pytest
from PIL import Image

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.bad_rows import LeftOut
from quecc_jax.data.batch import IGNORE, Batch, batch_spec
from quecc_jax.data.lengths import measure
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.sources.easy_vqa import image_paths
from quecc_jax.data.sources.open import open_sources
from quecc_jax.data.text.queries import question_ids
from quecc_jax.errors import UserError
from tests.data.every_row import eval_batches

BATCHINGS = ("pad", "grouped", "packed")
ROWS = 61


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """61 conversations of one or several turns with no, one or two images, of which two are missing."""
    folder = tmp_path_factory.mktemp("rows")
    for k, path in enumerate(image_paths("train")[:6]):
        Image.open(path).resize((30, 24)).save(folder / f"{k}.png")
    rng, rows = np.random.default_rng(0), list[dict[str, Any]]()
    for number in range(ROWS):
        images = 1 if number in (20, 40) else int(rng.choice([0, 1, 1, 1, 2]))
        turns = []
        for turn in range(int(rng.integers(1, 4))):
            lead = "<image>\n" * images if not turn else ""
            said = " ".join(rng.choice(["one", "two", "three", "red", "blue"], int(rng.integers(1, 7))))
            turns += [("human", f"{lead}{said}?"), ("gpt", str(rng.choice(["green", "bad", "good image"])))]
        row = {"id": number, "conversations": [{"from": who, "value": text} for who, text in turns]}
        if images:
            names = [f"{rng.integers(6)}.png" for _ in range(images)]
            if number in (20, 40):
                names[-1] = "none.png"
            row["image"] = names if images > 1 else names[0]
        rows.append(row)
    rows[7]["conversations"].pop()
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


@pytest.fixture
def data(rows_file, tokenizer, tmp_path):
    source = SourceConfig(path=str(rows_file), images=str(rows_file.parent))
    return DataConfig(
        sources=(source,),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=80,
        query_length=8,
        images_per_row=2,
        packed_images=5,
        lookahead_rows=30,
        num_length_buckets=2,
        cache=str(tmp_path / "cache"),
        bad_rows="skip",
        max_bad_share=0.1,
    )


def batched(data, batching):
    return dataclasses.replace(data, batching=batching)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(one: Batch, two: Batch) -> None:
    for name, a, b in zip(Batch._fields, one, two, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and np.array_equal(a, b)), name


def ids_of(batches):
    flat = np.concatenate([batch.ids.reshape(-1) for batch in batches])
    return flat[flat >= 0].tolist()


def single_rows(data, model):
    """Every row that can be learned from by itself, by id: its batch of one."""
    found = {}
    lone = dataclasses.replace(data, batching="pad", bad_rows="skip", max_bad_share=1.0, packed_images=0)
    with make_iterator(lone, model, 1, 0) as iterator:
        for batch in take(iterator, ROWS):
            if batch.segments.any():
                found[int(batch.ids[0])] = batch
    return found


def test_a_packed_row_is_its_conversations_one_after_another(data, model):
    data, alone = batched(data, "packed"), single_rows(data, model)
    spec, v = batch_spec(model, data, 4), model.visual_tokens
    seen, several = 0, 0
    with make_iterator(data, model, 4, 0) as iterator:
        batches = take(iterator, 5)
    for batch in batches:
        for name, wanted, array in zip(Batch._fields, spec, batch, strict=True):
            if name != "ids":
                assert (wanted is None) == (array is None), name
                assert wanted is None or (wanted.shape, wanted.dtype) == (array.shape, array.dtype), name
        for k in range(4):
            start, image = 0, 0
            held = [alone[one] for one in batch.ids[k].tolist() if one in alone]
            for number, one in enumerate(held, start=1):
                length, images = int(one.segments.sum()), int((one.query_ends >= 0).sum())
                here, there = slice(start, start + length), slice(image, image + images)
                assert (batch.segments[k, here] == number).all()
                for name in ("tokens", "labels", "positions"):
                    assert np.array_equal(getattr(batch, name)[k, here], getattr(one, name)[0, :length]), name
                slots = one.slots[0, :length]
                assert np.array_equal(batch.slots[k, here], np.where(slots < 0, -1, slots + image * v))
                assert np.array_equal(batch.pixels[k, there], one.pixels[0, :images])
                for slot, own in enumerate(one.query_ends[0, :images], start=image):
                    wanted = question_ids(one.queries[0], one.query_segments[0], own)
                    segments, end = batch.query_segments[k], batch.query_ends[k, slot]
                    assert np.array_equal(question_ids(batch.queries[k], segments, end), wanted)
                start, image, seen = start + length, image + images, seen + 1
            assert not batch.segments[k, start:].any() and not batch.tokens[k, start:].any()
            assert (batch.labels[k, start:] == IGNORE).all() and (batch.slots[k, start:] == -1).all()
            assert not batch.pixels[k, image:].any() and (batch.query_ends[k, image:] == -1).all()
            several += len(held) > 1
    assert seen > 45 and several > 15


def test_nothing_is_predicted_across_segments(data, model):
    """Even where every token carries loss, a conversation's first has nothing before it."""
    with make_iterator(dataclasses.replace(batched(data, "packed"), labels="all"), model, 4, 0) as iterator:
        for batch in take(iterator, 4):
            begins = np.diff(batch.segments, axis=1, prepend=0) != 0
            assert begins.sum() > 8 and (batch.labels[begins] == IGNORE).all()


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_an_epoch_holds_every_row_once_on_any_number_of_hosts(data, model, batching, hosts):
    data = batched(data, batching)
    with make_iterator(data, model, 4, 0) as alone:
        whole, drawn = [], list[int]()
        while len(drawn) < ROWS:
            whole.append(next(alone))
            drawn = ids_of(whole)
    # Pad batches run across the end of the epoch; so may the last packed batch.
    assert sorted(drawn[:ROWS]) == list(range(ROWS)) or batching == "packed"
    assert len(set(drawn)) == ROWS
    parts, left_out = [], dict[int, LeftOut]()
    for share in np.arange(4).reshape(hosts, -1):
        with make_iterator(data, model, 4, 0, rows=share) as iterator:
            parts.append(take(iterator, len(whole)))
            left_out |= iterator.tally.left_out
    assert {row: one.reason for row, one in left_out.items()} == {
        7: "turns",
        20: "picture missing",
        40: "picture missing",
    }
    for step, batch in enumerate(whole):
        for share, part in zip(np.arange(4).reshape(hosts, -1), parts, strict=True):
            assert_same(part[step], jax.tree.map(lambda x, s=share: x[s], batch))
    # What is not left out stands in the batches, as often as it was drawn.
    segments = sum(int(batch.segments.max(axis=1).sum()) for batch in whole)
    assert segments == sum(row not in left_out for row in drawn)


@pytest.mark.parametrize("batching", ["grouped", "packed"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0]])
def test_a_run_goes_on_at_another_number_of_hosts(data, model, batching, weights):
    if weights:
        other = dataclasses.replace(data.sources[0], split="test")
        both = zip((data.sources[0], other), weights, strict=True)
        sources = [dataclasses.replace(one, weight=weight) for one, weight in both]
        data = dataclasses.replace(data, sources=tuple(sources))
    data = batched(data, batching)
    with make_iterator(data, model, 4, 3) as iterator:
        whole = take(iterator, 40)
    for taken in (3, 17, 30):
        with make_iterator(data, model, 4, 3, rows=[0, 1]) as iterator:
            take(iterator, taken)
            state = json.loads(json.dumps(iterator.get_state()))
        for rows in ([0, 1, 2, 3], [2]):
            with make_iterator(data, model, 4, 3, rows=rows) as iterator:
                iterator.set_state(state)
                for batch, expected in zip(take(iterator, 4), whole[taken:], strict=False):
                    wanted = jax.tree.map(lambda x, rows=rows: x[rows], expected._replace(ids=None))
                    assert_same(batch._replace(ids=None), wanted)


def test_the_state_knows_the_batching_and_the_lengths(data, model, tokenizer):
    with make_iterator(batched(data, "packed"), model, 4, 0) as iterator:
        state = iterator.get_state()
    others = (
        batched(data, "pad"),
        batched(data, "grouped"),
        dataclasses.replace(batched(data, "packed"), template="v1", max_length=160),
        dataclasses.replace(batched(data, "packed"), packed_images=4),
    )
    for other in others:
        with make_iterator(other, model, 4, 0) as iterator, pytest.raises(Exception, match="another stream"):
            iterator.set_state(state)


def children():
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != "zombie"}


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_workers_change_no_batch_and_nothing_outlives_the_iterator(data, model, batching, workers):
    data = batched(data, batching)
    with make_iterator(data, model, 4, 0) as iterator:
        expected = take(iterator, 20)
    threads, processes = set(threading.enumerate()), children()
    with make_iterator(dataclasses.replace(data, workers=workers), model, 4, 0) as iterator:
        batches = take(iterator, 20)
        tally = iterator.tally
        assert len(set(threading.enumerate()) - threads) + len(children() - processes) > 0
    assert set(tally.left_out) <= {7, 20, 40} and len(tally.left_out) > 0
    for one, two in zip(batches, expected, strict=True):
        assert_same(one, two)
    assert not set(threading.enumerate()) - threads
    # A worker's helper, which multiprocessing keeps for the next ones, is no worker.
    left = [psutil.Process(pid).cmdline() for pid in children() - processes]
    assert [line for line in left if "resource_tracker" not in " ".join(line)] == []


def test_grouped_batches_of_text_have_no_image_places(data, model):
    with make_iterator(batched(data, "grouped"), model, 4, 0) as iterator:
        batches = take(iterator, 16)
    shapes = {(batch.tokens.shape, batch.query_ends.shape, batch.pixels is None) for batch in batches}
    assert ((4, 40), (4, 0), True) in shapes and ((4, 80), (4, 2), False) in shapes
    for batch in batches:
        assert batch.segments.any() and (batch.slots.max() >= 0) == (batch.query_ends.size > 0)


def test_lengths_are_measured_once(data, model, tmp_path, monkeypatch):
    data = batched(data, "packed")
    with make_iterator(data, model, 4, 0) as iterator:
        first = next(iterator)
    (kept,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr("quecc_jax.data.lengths._passed", lambda *_: pytest.fail("measured again"))
    with make_iterator(data, model, 4, 0) as iterator:
        assert_same(next(iterator), first)
    monkeypatch.undo()
    for change in ({"max_length": 90}, {"template": "v1", "max_length": 160}, {"images_per_row": 1}):
        with make_iterator(dataclasses.replace(data, max_bad_share=0.5, **change), model, 4, 0):
            pass
    assert len(list((tmp_path / "cache").iterdir())) == 4
    kept.write_bytes(kept.read_bytes()[:100])
    with make_iterator(data, model, 4, 0) as iterator:
        assert_same(next(iterator), first)
    for refused in ({"bad_rows": "error"}, {"max_bad_share": 0.01}):
        with pytest.raises(UserError, match=r"row 8.*: its last turn has no answer"):
            make_iterator(dataclasses.replace(data, **refused), model, 4, 0)


@pytest.mark.slow
def test_processes_that_share_the_pass_measure_the_same(data, model, tmp_path, monkeypatch):
    data = batched(data, "packed")
    sources = open_sources(data, model)
    alone = measure(sources, data, 4)
    monkeypatch.setattr("quecc_jax.data.lengths.CHUNK", 7)
    before = children()
    apart = dataclasses.replace(data, workers=2, cache=str(tmp_path / "other"))
    shared = measure(sources, apart, 4)
    assert all(np.array_equal(a, b) for a, b in zip(alone, shared, strict=True))
    with pytest.raises(UserError, match="no answer"):
        measure(sources, dataclasses.replace(apart, bad_rows="error"), 4)
    left = [psutil.Process(pid).cmdline() for pid in children() - before]
    assert [line for line in left if "resource_tracker" not in " ".join(line)] == []


def test_evaluation_reads_one_row_after_another_whatever_the_batching(data, model, rows_file):
    rows = [row for row in json.loads(rows_file.read_text()) if row["id"] not in (7, 20, 40)]
    good = rows_file.with_name("good.json")
    good.write_text(json.dumps(rows))
    source = dataclasses.replace(data.sources[0], path=str(good))
    data = dataclasses.replace(batched(data, "packed"), sources=(source,))
    batches: list[Any] = list(eval_batches(data, model, 10))
    assert [batch.ids.shape for batch in batches] == [(10,)] * 6 and ids_of(batches) == list(range(58))
    assert {batch.segments.max() for batch in batches} == {1}
