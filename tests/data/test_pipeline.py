"""The stream of batches: epochs, mixtures, shares, exact resume, and what stands in a batch."""

import dataclasses
import json
import time
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.batch import IGNORE, Batch, batch_spec
from quecc_jax.data.images import load_pixels
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.sources.easy_vqa import image_paths
from quecc_jax.data.sources.pool import write_features
from quecc_jax.errors import UserError
from quecc_jax.experiments.testbed.build import build_pool
from tests.data.every_row import eval_batches, rows_by_id

SINGLE, MOSAIC, READING = (("single", "train"), ("mosaic", "train"), ("reading", "train"))


def take(iterator, count) -> list[Any]:
    return [next(iterator) for _ in range(count)]


def evaluate(*args, **more) -> list[Any]:
    return list(eval_batches(*args, **more))


def ids_of(batches):
    return np.concatenate([batch.ids for batch in batches])


def assert_same(one, two):
    for name, a, b in zip(Batch._fields, one, two, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and np.array_equal(a, b)), name


def rows_of(pools, *names):
    return sum(len(pools[name].rows) for name in names)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_an_epoch_visits_every_row_once_in_a_new_order(pools, settings, model, batch_size):
    rows = rows_of(pools, MOSAIC, READING)
    with make_iterator(settings(MOSAIC, READING), model, batch_size, 0) as iterator:
        assert iterator.rows == rows
        ids = ids_of(take(iterator, -(-2 * rows // batch_size)))[: 2 * rows]
    first, second = ids[:rows], ids[rows:]
    known = np.sort(list(rows_by_id(settings(MOSAIC, READING))))
    assert np.array_equal(np.sort(first), known) and np.array_equal(np.sort(second), known)
    assert not np.array_equal(first, second) and not np.array_equal(first, known)


def test_seed_decides_the_order(settings, model):
    def ids(seed):
        with make_iterator(settings(MOSAIC, READING), model, 16, seed) as iterator:
            return ids_of(take(iterator, 4)).tolist()

    assert ids(0) == ids(0) != ids(1)


def test_weights_are_shares_and_each_source_keeps_its_epochs(pools, settings, model):
    data = settings(MOSAIC, READING, weights=[3.0, 1.0])
    rows = rows_of(pools, MOSAIC)
    with make_iterator(data, model, 40, 0) as iterator:
        ids = ids_of(take(iterator, -(-rows * 4 // 3 // 40)))
    mosaic = ids[ids < 1 << 32]
    assert abs(len(mosaic) / len(ids) - 0.75) < 0.01
    assert np.array_equal(np.sort(mosaic[:rows]), np.arange(rows))


@pytest.mark.parametrize("weights", [[1.0, None], [1.0, 0.0], [1.0, -1.0]])
def test_weights_must_fit_together(settings, model, weights):
    with pytest.raises(UserError, match="weights"):
        make_iterator(settings(MOSAIC, READING, weights=weights), model, 8, 0)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0]])
def test_resume_mid_epoch_is_bitwise_exact(settings, model, weights):
    data = settings(MOSAIC, READING, weights=weights)
    with make_iterator(data, model, 12, 5) as iterator:
        take(iterator, 9)
        state = json.loads(json.dumps(iterator.get_state()))
        rest = take(iterator, 40)
        iterator.set_state(state)
        again = take(iterator, 3)
    with make_iterator(data, model, 12, 5) as fresh:
        fresh.set_state(state)
        resumed = take(fresh, 40)
    for one, two in zip(rest, resumed, strict=True):
        assert_same(one, two)
    for one, two in zip(rest, again, strict=False):
        assert_same(one, two)


def test_state_of_another_stream_is_refused(settings, model):
    with make_iterator(settings(MOSAIC), model, 8, 0) as iterator:
        state = iterator.get_state()
    for data, size, seed in ((settings(READING), 8, 0), (settings(MOSAIC), 16, 0), (settings(MOSAIC), 8, 1)):
        with make_iterator(data, model, size, seed) as other, pytest.raises(UserError, match="stream"):
            other.set_state(state)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batch_and_resume_under_another_number(settings, model, count):
    data = settings(MOSAIC, READING, weights=[1.0, 1.0])
    with make_iterator(data, model, 16, 0) as alone:
        whole = take(alone, 5)
    for share in (np.arange(16).reshape(count, -1), np.arange(16).reshape(-1, count).T):
        parts = []
        for rows in share:
            with make_iterator(data, model, 16, 0, rows=rows) as iterator:
                parts.append(take(iterator, 5))
                state = iterator.get_state()
        for step, batch in enumerate(whole):
            for rows, part in zip(share, parts, strict=True):
                assert_same(part[step], jax.tree.map(lambda x, rows=rows: x[rows], batch))
    with make_iterator(data, model, 16, 0) as alone:
        alone.set_state(state)
        (following,) = take(alone, 1)
    with make_iterator(data, model, 16, 0) as alone:
        assert_same(take(alone, 6)[-1], following)


@pytest.mark.parametrize("cached", [False, True])
def test_batches_are_what_the_spec_says(settings, model, cached, stored):
    data = data_of(settings, stored, cached)
    spec = batch_spec(model, data, 6, cached=cached)
    with make_iterator(data, model, 6, 0) as iterator:
        (batch,) = take(iterator, 1)
    for name, wanted, array in zip(Batch._fields, spec, batch, strict=True):
        if name == "ids":
            assert array.shape == (6,) and array.dtype == np.int64
        else:
            assert (wanted is None) == (array is None), name
            assert wanted is None or (wanted.shape, wanted.dtype) == (array.shape, array.dtype), name


def tower(images):
    """A stand-in that tells images apart: [b, 24, 24, 3] -> [b, 16, 3, 8]."""
    patches = images.reshape(-1, 4, 6, 4, 6, 3).mean(axis=(2, 4)).reshape(-1, 16, 3, 1)
    return patches * np.arange(8) / 255


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A pool with its images' features beside them."""
    pool = build_pool("mosaic", "train", tmp_path_factory.mktemp("stored") / "pool", 24, 20, 4)
    write_features(pool, tower, 8, "tower-1")
    return pool


def data_of(settings, pool, cached=True):
    source = SourceConfig(kind="pool", path=str(pool.directory))
    return dataclasses.replace(settings(), cached_features=cached, sources=(source,))


def test_rows_carry_their_own_text_and_image(pools, settings, model, tokenizer):
    data = settings(SINGLE, READING)
    rows, sources = rows_by_id(data), (pools[SINGLE], pools[READING])
    with make_iterator(data, model, 32, 0) as iterator:
        (batch,) = take(iterator, 1)
    for k, identity in enumerate(batch.ids):
        row = rows[int(identity)]
        question, answer = (turn["value"].removeprefix("<image>\n") for turn in row["conversations"])
        real = batch.segments[k] == 1
        length = real.sum()
        assert real[:length].all() and batch.positions[k, :length].tolist() == list(range(length))
        assert not batch.positions[k, length:].any() and not batch.tokens[k, length:].any()
        assert (batch.slots[k, length:] == -1).all() and (batch.labels[k, length:] == IGNORE).all()
        learned = batch.labels[k] != IGNORE
        assert tokenizer.decode(batch.labels[k][learned]) == answer
        assert tokenizer.decode(batch.queries[k, : batch.query_ends[k, 0] + 1]) == question
        slots = batch.slots[k][batch.slots[k] >= 0]
        assert slots.tolist() == [0, 1, 2, 3] and not batch.tokens[k][batch.slots[k] >= 0].any()
        image = sources[int(identity) >> 32].images[row["image"]]
        np.testing.assert_array_equal(batch.pixels[k, 0], image)


def test_cached_features_are_those_of_the_image(settings, model, stored):
    data = data_of(settings, stored)
    rows = rows_by_id(data)
    with make_iterator(data, model, 16, 0, fingerprint="tower-1") as iterator:
        (batch,) = take(iterator, 1)
    assert batch.pixels is None
    for k, identity in enumerate(batch.ids):
        wanted = tower(stored.images[rows[int(identity)]["image"]][None])[0].astype(np.float16)
        np.testing.assert_array_equal(batch.features[k, 0], wanted)
    with pytest.raises(UserError, match="another tower"):
        make_iterator(data, model, 16, 0, fingerprint="tower-2")


def test_features_must_be_there_and_fit(settings, model, stored):
    with pytest.raises(UserError, match="no features"):
        make_iterator(settings(MOSAIC, cached_features=True), model, 8, 0)
    data = data_of(settings, stored)
    wide = dataclasses.replace(model, vision=dataclasses.replace(model.vision, width=16))
    with pytest.raises(UserError, match="16, 3, 16"):
        make_iterator(data, wide, 8, 0)
    mixed = dataclasses.replace(data, sources=(*data.sources, SourceConfig(kind="easy_vqa")))
    with pytest.raises(UserError, match="cached_features needs prepared data or pools"):
        make_iterator(mixed, model, 8, 0)


def test_pools_of_another_image_size_are_refused(settings, model):
    large = dataclasses.replace(model, vision=dataclasses.replace(model.vision, image_size=48, patch_size=12))
    with pytest.raises(UserError, match="24 pixels"):
        make_iterator(settings(MOSAIC), large, 8, 0)


def test_a_tokenizer_larger_than_the_model_is_refused(settings, model, tokenizer):
    def sized(words):
        return dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, vocab_size=words))

    make_iterator(settings(MOSAIC), sized(len(tokenizer)), 8, 0).close()
    small: tuple[Any, ...] = ((make_iterator, {"seed": 0}), (evaluate, {}))
    for make, more in small:
        with pytest.raises(UserError, match=f"has {len(tokenizer)} tokens"):
            make(settings(MOSAIC), sized(len(tokenizer) - 1), batch_size=8, **more)


def test_text_only_run(text_pool, tokenizer, model):
    data = DataConfig(
        sources=(SourceConfig(kind="pool", path=str(text_pool.directory)),),
        template="plain",
        tokenizer=tokenizer.directory,
        max_length=96,
        images_per_row=0,
        labels="all",
    )
    with make_iterator(data, model, 16, 0) as iterator:
        (batch,) = take(iterator, 1)
    assert batch.pixels is None and batch.features is None
    assert batch.queries.shape == (16, 0) and batch.query_ends.shape == (16, 0)
    assert (batch.slots == -1).all()
    labels = batch.segments.astype(bool)
    labels[:, 0] = False
    assert np.array_equal(batch.labels != IGNORE, labels)


@pytest.fixture
def mixed_file(tmp_path):
    """A LLaVA file with no, one and two images per row; returns (path, its rows)."""
    for k, path in enumerate(image_paths("train")[:3]):
        Image.open(path).resize((40, 30)).save(tmp_path / f"{k}.png")
    rows = [
        {"id": "a", "conversations": [{"from": "human", "value": "red?"}, {"from": "gpt", "value": "blue"}]},
        {
            "id": "b",
            "image": "0.png",
            "conversations": [{"from": "human", "value": "<image>\none?"}, {"from": "gpt", "value": "red"}],
        },
        {
            "id": "c",
            "image": ["1.png", "2.png"],
            "conversations": [
                {"from": "human", "value": "<image> two <image>"},
                {"from": "gpt", "value": "green"},
                {"from": "human", "value": "three?"},
                {"from": "gpt", "value": "red"},
            ],
        },
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path, rows


def file_data(path, tokenizer, **more):
    source = SourceConfig(kind="llava_json", path=str(path), images=str(path.parent))
    return DataConfig(
        **{
            "sources": (source,),
            "tokenizer": tokenizer.directory,
            "template": "short",
            "max_length": 48,
            "query_length": 8,
            "images_per_row": 2,
            **more,
        }
    )


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_rows_with_no_one_and_two_images_share_a_batch(mixed_file, tokenizer, model, form):
    path, rows = mixed_file
    if form == "jsonl":
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    (batch,) = evaluate(file_data(path, tokenizer), model, 3)
    assert batch.ids.tolist() == [0, 1, 2]
    assert [(row[row >= 0]).tolist() for row in batch.slots] == [[], [0, 1, 2, 3], list(range(8))]
    assert (batch.query_ends >= 0).tolist() == [[False, False], [True, False], [True, True]]
    # Two images of one turn share its question.
    assert batch.query_ends[2, 0] == batch.query_ends[2, 1] and batch.query_segments.max() == 1
    assert not batch.queries[0].any() and not batch.pixels[0].any() and not batch.pixels[1, 1].any()
    for row, slot, name in ((1, 0, "0.png"), (2, 0, "1.png"), (2, 1, "2.png")):
        np.testing.assert_array_equal(batch.pixels[row, slot], load_pixels(path.parent / name, model.vision))


def test_easy_vqa_is_a_source(tokenizer, model):
    data = DataConfig(
        sources=(SourceConfig(kind="easy_vqa", split="test"),),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=48,
    )
    with make_iterator(data, model, 4, 0) as iterator:
        assert iterator.rows == 9673
        (batch,) = take(iterator, 1)
    row = rows_by_id(data)[int(batch.ids[2])]
    np.testing.assert_array_equal(batch.pixels[2, 0], load_pixels(row["image"], model.vision))


def test_evaluation_goes_through_every_row_in_order(pools, settings, model):
    data = settings(("single", "test"), ("reading", "test"))
    batches = evaluate(data, model, 64)
    ids = ids_of(batches)
    rows = rows_of(pools, ("single", "test"), ("reading", "test"))
    assert ids[:rows].tolist() == list(rows_by_id(data)) and (ids[rows:] == -1).all()
    assert len({batch.tokens.shape for batch in batches}) == 1
    empty = batches[-1].ids == -1
    assert empty.any() and not batches[-1].segments[empty].any()
    assert (batches[-1].labels[empty] == IGNORE).all() and (batches[-1].slots[empty] == -1).all()


def test_prompts_end_where_the_answer_begins(settings, model):
    data = settings(("reading", "test"))
    for asked, taught in zip(evaluate(data, model, 64, prompts=True), evaluate(data, model, 64), strict=True):
        assert (asked.labels == IGNORE).all()
        for k in np.flatnonzero(asked.ids >= 0):
            length = asked.segments[k].sum()
            assert taught.labels[k, length] != IGNORE and (taught.labels[k, :length] == IGNORE).all()
            assert np.array_equal(asked.tokens[k, :length], taught.tokens[k, :length])
        assert np.array_equal(asked.pixels, taught.pixels) and np.array_equal(asked.queries, taught.queries)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_truncated_rows_are_counted(tmp_path, model, tokenizer, workers):
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps(
            [
                {"conversations": [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "red " * k}]}
                for k in range(1, 11)
            ]
        )
    )
    data = file_data(path, tokenizer, max_length=12, workers=workers)
    # <bos> USER : one ? ASSISTANT : and <eos> leave room for four words; six of the ten rows have more.
    with make_iterator(data, model, 5, 0) as iterator:
        batches = take(iterator, 4)
        assert len(iterator.tally.truncated) == 6 and iterator.tally.read == 20
    assert sum(int((batch.labels[:, -1] == tokenizer.encode("red")[0]).sum()) for batch in batches) == 12


def test_dropped_rows_leave_their_rows_empty(tmp_path, model, tokenizer):
    path = tmp_path / "rows.json"
    path.write_text(
        json.dumps(
            [
                {"conversations": [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "red " * k}]}
                for k in range(1, 11)
            ]
        )
    )
    with make_iterator(file_data(path, tokenizer, max_length=12, too_long="drop"), model, 5, 0) as iterator:
        batches = take(iterator, 4)
        tally = iterator.tally
        assert (len(tally.truncated), len(tally.left_out), tally.reasons) == (0, 6, {"dropped": 12})
    for batch in batches:
        empty = ~batch.segments.any(1)
        # Row k - 1 says k words, and four fit.
        assert np.array_equal(empty, batch.ids >= 4)
        assert (batch.labels[empty] == IGNORE).all() and not batch.tokens[empty].any()


def test_malformed_rows_and_missing_images_are_named(mixed_file, tokenizer, model):
    path, rows = mixed_file
    (path.parent / "2.png").unlink()
    with pytest.raises(UserError, match=r"rows\.json, row 3 \(line 1\): .*2\.png"):
        list(eval_batches(file_data(path, tokenizer), model, 3))
    with (
        make_iterator(file_data(path, tokenizer), model, 3, 0) as iterator,
        pytest.raises(UserError, match=r"rows\.json, row 3 \(line 1\): .*2\.png"),
    ):
        next(iterator)
    rows[1]["conversations"][1]["from"] = "bot"
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"rows\.json, row 2 \(line 1\): turn 2"):
        list(eval_batches(file_data(path, tokenizer), model, 3))


def test_skipped_rows_leave_their_rows_empty_up_to_a_share(mixed_file, tokenizer, model):
    path, rows = mixed_file
    (path.parent / "2.png").unlink()
    rows[1]["conversations"][1]["from"] = "bot"
    path.write_text(json.dumps(rows))
    data = file_data(path, tokenizer, bad_rows="skip", max_bad_share=0.7)
    with make_iterator(data, model, 3, 0) as iterator:
        batches = take(iterator, 2)
        tally = iterator.tally
        assert tally.reasons == {"turns": 2, "picture missing": 2} and tally.read == 6
        assert {k: (one.reason, one.message.partition(": ")[0]) for k, one in tally.left_out.items()} == {
            1: ("turns", f"{path}, row 2 (line 1)"),
            2: ("picture missing", f"{path}, row 3 (line 1)"),
        }
    for batch in batches:
        assert sorted(batch.ids.tolist()) == [0, 1, 2]
        assert np.array_equal(batch.segments.any(1), batch.ids == 0)
        # Row 3's first image is there; with the second it is left out as well.
        assert not batch.pixels.any() and (batch.query_ends == -1).all() and not batch.queries.any()
        assert (batch.labels[batch.ids > 0] == IGNORE).all() and not batch.tokens[batch.ids > 0].any()
    data = dataclasses.replace(data, max_bad_share=0.5)
    with make_iterator(data, model, 3, 0) as iterator, pytest.raises(UserError, match="2 of the 3 rows read"):
        next(iterator)
    with pytest.raises(UserError, match=r"rows\.json, row 2 \(line 1\): turn 2"):
        list(eval_batches(data, model, 3))


def test_unreadable_files_are_named(tmp_path, tokenizer, model):
    path = tmp_path / "rows.jsonl"
    for text, says in (
        (b'{"a": \n', "line 1: it is not JSON"),
        (b"\n1, 2\n", "line 2"),
        (b"", "no rows"),
        (b'{"a": "\xff"}\n', "UTF-8"),
    ):
        path.write_bytes(text)
        with pytest.raises(UserError, match=says):
            evaluate(file_data(path, tokenizer), model, 2)
    for name in ("none.json", "object.json"):
        (tmp_path / "object.json").write_text('{"a": 1}')
        with pytest.raises(UserError, match=name):
            make_iterator(file_data(tmp_path / name, tokenizer), model, 2, 0)
    with pytest.raises(UserError, match=r"data\.sources"):
        make_iterator(DataConfig(tokenizer=tokenizer.directory), model, 2, 0)


@pytest.mark.slow
def test_worker_processes_change_nothing(settings, model):
    data = settings(MOSAIC, READING)
    with make_iterator(data, model, 16, 0) as iterator:
        alone = take(iterator, 6)
    with make_iterator(dataclasses.replace(data, workers=2), model, 16, 0) as iterator:
        iterator.set_state({**iterator.get_state(), "taken": 1})
        for one, two in zip(alone[1:], take(iterator, 5), strict=True):
            assert_same(one, two)


def test_throughput(settings, model, capsys):
    """Prints, asserts nothing about time: machines differ."""
    with make_iterator(settings(SINGLE, MOSAIC, READING, weights=[1.0, 1.0, 1.0]), model, 64, 0) as iterator:
        take(iterator, 5)
        start = time.perf_counter()
        batches = take(iterator, 100)
        seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f"\n[data] {seconds * 10:.2f} ms per batch of 64 rows from pools")
    assert len(set(map(tuple, (batch.ids for batch in batches)))) == 100
