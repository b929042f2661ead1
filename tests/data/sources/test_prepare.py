"""Prepared data: the same rows and images as their source, whole or absent, checked, and resumable."""

import dataclasses
import json
import os
import pickle
import shutil
from io import BytesIO
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.images import load_pixels
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.preparing import image_shards as making
from quecc_jax.data.preparing import prepare as preparing
from quecc_jax.data.preparing.prepare import prepare
from quecc_jax.data.sources.array_record import Recipe, open_prepared, read_manifest
from quecc_jax.data.sources.feature_store import write_features
from quecc_jax.data.sources.shards import Records, check, find_shard, write_shard
from quecc_jax.errors import BadRow, UserError
from tests.data.every_row import eval_batches, rows_by_id
from tests.data.photos import ROWS, photo, write_llava

SMALL: dict[str, Any] = {"shard_images": 3, "shard_rows": 5}
RAW = Recipe(24, "pad", "raw")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """(file, its folder, its rows)."""
    folder = tmp_path_factory.mktemp("llava")
    path, rows = write_llava(folder)
    return path, folder, rows


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    """Shards are made without starting processes, which takes seconds; the command's test starts them."""

    def alone(jobs, find, workers, progress):
        for number, job in enumerate(jobs):
            yield number, making._make(job, find, progress)

    monkeypatch.setattr(making, "_parallel", alone)


def data_config(source, tokenizer, **more):
    return DataConfig(
        **{
            "sources": (source,),
            "tokenizer": tokenizer.directory,
            "template": "short",
            "max_length": 48,
            "query_length": 24,
            "images_per_row": 2,
            **more,
        }
    )


def assert_same_batches(one, two):
    for a, b in zip(one, two, strict=True):
        for name, left, right in zip(a._fields, a, b, strict=True):
            assert (left is None) == (right is None), name
            assert left is None or np.array_equal(left, right), name


@pytest.mark.parametrize("recipe", [Recipe(), RAW, Recipe(24, "pad", "png")])
@pytest.mark.parametrize("where", ["local", "bucket"])
def test_batches_are_those_of_the_folder(
    llava, tokenizer, model, tmp_path, monkeypatch, bucket, recipe, where
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, folder, rows = llava
    out = "gs://bucket/prepared" if where == "bucket" else str(tmp_path / "prepared")
    manifest = prepare(path, (str(folder),), out, recipe, **SMALL)
    assert (manifest["rows"], manifest["pictures"]) == (ROWS, 7)
    assert [shard.records for shard in manifest["shards"]["rows"]] == [5, 5, 2]
    assert [shard.records for shard in manifest["shards"]["pictures"]] == [3, 3, 1]
    source = data_config(SourceConfig("llava_json", str(path), str(folder)), tokenizer)
    ours = data_config(SourceConfig("array_record", out), tokenizer)
    assert_same_batches(eval_batches(ours, model, 5), eval_batches(source, model, 5))
    for row, (identity, stored) in zip(rows, rows_by_id(ours).items(), strict=True):
        assert stored["id"] == row["id"] and stored["conversations"] == row["conversations"], identity


def test_there_is_one_process_at_least(llava, tmp_path):
    path, folder, _ = llava
    assert prepare(path, (str(folder),), tmp_path / "out", RAW, workers=-1)["pictures"] == 7


def test_jpeg_is_close_and_small(llava, tmp_path, model):
    path, folder, _ = llava
    prepare(path, (str(folder),), tmp_path / "out", Recipe(96, "pad", "jpeg", 95))
    vision = dataclasses.replace(model.vision, image_size=96)
    prepared = open_prepared(tmp_path / "out")
    files = list(
        dict.fromkeys(name for row in prepared.rows for name in cast(list[str], row.get("image_files", [])))
    )
    for number, name in enumerate(files):
        with Image.open(BytesIO(prepared.images[number])) as opened:
            ours = np.asarray(opened).astype(int)
        wanted = load_pixels(folder / name, vision)
        assert np.abs(ours - wanted).mean() < 1.5


def test_mixtures_with_prepared_data_resume_exactly(llava, pools, tokenizer, model, tmp_path):
    path, folder, _ = llava
    prepare(path, (str(folder),), tmp_path / "out", RAW)
    sources = (
        SourceConfig("array_record", str(tmp_path / "out"), weight=2.0),
        SourceConfig("llava_json", str(path), str(folder), weight=1.0),
        SourceConfig("pool", str(pools["single", "train"].directory), weight=1.0),
    )
    data = dataclasses.replace(data_config(sources[0], tokenizer), sources=sources)
    with make_iterator(data, model, 8, 3) as iterator:
        batches = [next(iterator) for _ in range(7)]
        state = json.loads(json.dumps(iterator.get_state()))
        rest = [next(iterator) for _ in range(4)]
    shares = np.bincount(np.concatenate([batch.ids for batch in batches + rest]) >> 32)
    assert np.abs(shares / shares.sum() - [0.5, 0.25, 0.25]).max() < 0.03
    with make_iterator(data, model, 8, 3) as iterator:
        iterator.set_state(state)
        assert_same_batches([next(iterator) for _ in range(4)], rest)


def test_several_folders_are_searched_in_order(tmp_path, tokenizer, model):
    for root, colour in (("one", "red"), ("two", "lime")):
        (tmp_path / root / "a").mkdir(parents=True)
        Image.new("RGB", (30, 30), colour).save(tmp_path / root / f"a/{root}.png")
        Image.new("RGB", (30, 30), colour).save(tmp_path / root / "a/both.png")
    turns = [{"from": "human", "value": "<image> red?"}, {"from": "gpt", "value": "red"}]
    names = ["a/two.png", "a/one.png", "a/both.png", "a/none.png"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": name, "conversations": turns}) + "\n" for name in names[:3]))
    roots = (str(tmp_path / "one"), str(tmp_path / "two"))
    (batch,) = eval_batches(data_config(SourceConfig("llava_json", str(path), roots), tokenizer), model, 3)
    assert batch.pixels[:, 0, 0, 0].tolist() == [[0, 255, 0], [255, 0, 0], [255, 0, 0]]
    path.write_text(json.dumps({"image": names[3], "conversations": turns}))
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1: image a/none\.png is in none of "):
        list(eval_batches(data_config(SourceConfig("llava_json", str(path), roots), tokenizer), model, 1))


def test_what_cannot_be_read_stops_or_is_left_out_and_counted(tmp_path, model, tokenizer):
    photo(0, 40, 30).save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:300])
    turns = [{"from": "human", "value": "<image> red?"}, {"from": "gpt", "value": "red"}]
    rows = [{"image": name, "conversations": turns} for name in ("good.jpg", "bad.jpg", "none.jpg", 7)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + b"{\xff}\n{\n")
    with pytest.raises(UserError, match=r"rows\.jsonl, line 4: its image 7 is not .*--bad skip"):
        prepare(path, (str(tmp_path),), tmp_path / "out", RAW)
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows[:3]).encode())
    with pytest.raises(UserError, match=r"image .*bad\.jpg cannot be read.*--bad skip"):
        prepare(path, (str(tmp_path),), tmp_path / "out2", RAW)
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + b"{\xff}\n{\n")
    manifest = prepare(path, (str(tmp_path),), tmp_path / "out3", RAW, skip_bad=True)
    lost = manifest["unreadable"]
    assert (lost["rows"], lost["pictures"], len(lost["first"])) == (3, 2, 5) and manifest["rows"] == 6
    prepared = open_prepared(tmp_path / "out3")
    assert len(prepared.rows) == 6
    with pytest.raises(BadRow, match=r"not UTF-8 .*when the data were prepared"):
        prepared.rows[4]
    left_out = []
    for source in (
        SourceConfig("array_record", str(tmp_path / "out3")),
        SourceConfig("llava_json", str(path), str(tmp_path)),
    ):
        data = data_config(source, tokenizer, bad_rows="skip", max_bad_share=1.0)
        with make_iterator(data, model, 6, 0) as iterator:
            assert sorted(next(iterator).segments.any(1)) == [False] * 5 + [True]
            left_out.append({one.id: one.reason for one in iterator.tally.left_out.values()})
    wanted = {1: "picture broken", 2: "picture missing", 3: "not a row", 4: "text", 5: "not a row"}
    assert left_out == [wanted, wanted]


def test_what_stopped_at_a_bad_image_goes_on_without_it(llava, tmp_path):
    path, folder, rows = llava
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    last = [ref for row in rows for ref in np.atleast_1d(row.get("image", []))][-1]
    (mixed / last).write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--bad skip"):
        prepare(path, (str(mixed),), out, RAW, **SMALL)
    kept = {file.name: file.stat().st_mtime_ns for file in out.glob("pictures*.array_record")}
    skipping = prepare(path, (str(mixed),), out, RAW, skip_bad=True, **SMALL)
    assert skipping["unreadable"]["pictures"] == 1
    assert kept.items() <= {file.name: file.stat().st_mtime_ns for file in out.glob("*.array_record")}.items()
    fresh = prepare(path, (str(mixed),), tmp_path / "fresh", RAW, skip_bad=True, **SMALL)
    assert skipping["shards"] == fresh["shards"]


def test_what_skipped_bad_images_does_not_go_on_as_if_it_had_none(llava, tmp_path):
    path, folder, _ = llava
    prepare(path, (str(folder),), tmp_path / "out", RAW, skip_bad=True, **SMALL)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(UserError, match="holds a part of other data or of other settings"):
        prepare(path, (str(folder),), tmp_path / "out", RAW, **SMALL)


def test_an_interrupted_preparation_is_absent_and_continues(llava, tmp_path, monkeypatch):
    path, folder, _ = llava
    out, real, touched = tmp_path / "out", making.stored, []

    def stored(file, recipe):
        touched.append(file)
        if len(touched) == 6:
            raise KeyboardInterrupt
        return real(file, recipe)

    monkeypatch.setattr(making, "stored", stored)
    with pytest.raises(KeyboardInterrupt):
        prepare(path, (str(folder),), out, RAW, **SMALL)
    with pytest.raises(UserError, match="has no manifest"):
        open_prepared(out)
    with pytest.raises(UserError, match="holds a part of other data or of other settings"):
        prepare(path, (str(folder),), out, Recipe(24, "square", "raw"), **SMALL)
    whole = prepare(path, (str(folder),), out, RAW, **SMALL)
    assert len(touched) == 6 + 7 - 3  # the first shard is kept
    fresh = prepare(path, (str(folder),), tmp_path / "fresh", RAW, **SMALL)
    assert whole["shards"] == fresh["shards"]
    names = [sorted(file.name for file in folder.iterdir()) for folder in (out, tmp_path / "fresh")]
    assert names[0] == names[1]
    with pytest.raises(UserError, match="prepared already"):
        prepare(path, (str(folder),), out, RAW, **SMALL)


def parts_of(llava, out, parts, **more):
    path, folder, _ = llava
    order = preparing.Order(path, (str(folder),), out, RAW, **SMALL, **more)
    return order, [lambda k=k: preparing.prepare_part(order, k, parts) for k in range(parts)]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@given(st.integers(1, 5), st.randoms())
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_in_any_order_are_what_one_process_writes_bit_by_bit(llava, tmp_path_factory, parts, rng):
    """Three shards of images and three of rows; of five parts two have nothing to do."""
    path, folder, _ = llava
    root = tmp_path_factory.mktemp("parts")
    order, writing = parts_of(llava, root / "parts", parts)
    rng.shuffle(writing)
    names = [shard.name for write in writing for shard in write()]
    assert len(names) == len(set(names)) == 6
    assert not (root / "parts/manifest.json").exists()
    preparing.merge_parts(order)
    prepare(path, (str(folder),), root / "whole", RAW, **SMALL)
    assert contents(root / "parts") == contents(root / "whole")


def test_parts_that_are_missing_or_differ_are_refused_by_name(llava, tmp_path):
    out = tmp_path / "out"
    order, (first, second) = parts_of(llava, out, 2)
    first()
    with pytest.raises(
        UserError,
        match=rf"^{out}/pictures-00001-of-00003\.array_record is missing \(and 1 more like it\); run the",
    ):
        preparing.merge_parts(order)
    second()
    file = out / "rows-00002-of-00003.array_record"
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(
        UserError, match=r"rows-00002-of-00003\.array_record is damaged, or was made of other data;"
    ):
        preparing.merge_parts(order)
    assert not (out / "manifest.json").exists()
    with pytest.raises(UserError, match="holds a part of other data or of other settings"):
        preparing.prepare_part(order._replace(recipe=Recipe(24, "square", "raw")), 1, 2)
    first()
    assert preparing.merge_parts(order)["pictures"] == 7
    assert (out / "manifest.json").exists()


def test_what_is_wrong_in_parts_is_counted_in_the_whole(llava, tmp_path):
    path, folder, rows = llava
    mixed = tmp_path / "mixed"
    shutil.copytree(folder, mixed)
    last = [ref for row in rows for ref in np.atleast_1d(row.get("image", []))][-1]
    (mixed / last).write_bytes(b"no image")
    order, writing = parts_of((path, mixed, rows), tmp_path / "parts", 2, skip_bad=True)
    for write in writing:
        write()
    merged = preparing.merge_parts(order)
    assert merged == prepare(path, (str(mixed),), tmp_path / "whole", RAW, skip_bad=True, **SMALL)
    assert merged["unreadable"]["pictures"] == 1


@pytest.mark.parametrize("what", ["order of rows", "pixels"])
def test_what_changed_since_the_interruption_is_made_anew(tmp_path, monkeypatch, what):
    """Of the same size: the shards that are there hold the images of other rows, or other images."""
    path, _ = write_llava(tmp_path / "llava")
    folder, out = (str(path.parent),), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_row_shard", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(path, folder, out, RAW, **SMALL)
    if what == "pixels":
        for image in path.parent.rglob("*.jpg"):
            Image.new("RGB", (30, 20), (9, 9, 9)).save(image)
            os.utime(image, (1, 1))
    else:
        rows = json.loads(path.read_text())
        text = json.dumps(rows[::-1])
        path.write_text(text + " " * (path.stat().st_size - len(text)))
    prepare(path, folder, out, RAW, **SMALL)
    prepare(path, folder, tmp_path / "straight", RAW, **SMALL)
    one, other = open_prepared(out), open_prepared(tmp_path / "straight")
    assert list(one.images) == list(other.images) and list(one.rows) == list(other.rows)


def test_what_was_made_of_other_data_is_not_taken_for_this_ones(llava, tmp_path):
    """Features know their tower, but not their images."""
    path, folder, _ = llava
    write_features(tmp_path, 3, lambda number: np.ones((2, 2, 3), np.uint8), lambda x: x / 2, 2, "f")
    with pytest.raises(UserError, match=r"holds features-.*, which is of data that were here before"):
        prepare(path, (str(folder),), tmp_path, RAW, **SMALL)


def test_damage_is_found(llava, tmp_path):
    path, folder, _ = llava
    prepare(path, (str(folder),), tmp_path, RAW, **SMALL)
    shards = read_manifest(tmp_path)["shards"]["pictures"]
    for shard in shards:
        check(tmp_path, shard)
    file = tmp_path / shards[1].name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"pictures-00001.* is damaged: its SHA-256"):
        check(tmp_path, shards[1])
    file.write_bytes(content[:-7])
    with pytest.raises(UserError, match=r"pictures-00001.* bytes, not"):
        open_prepared(tmp_path).images[4]
    file.unlink()
    with pytest.raises(UserError, match=r"pictures-00001.* cannot be read"):
        open_prepared(tmp_path).images[4]
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="not of format 1"):
        open_prepared(tmp_path)


def test_other_sizes_and_aspects_are_refused(llava, tokenizer, model, tmp_path):
    path, folder, _ = llava
    prepare(path, (str(folder),), tmp_path / "out", Recipe(48, "pad", "raw"))
    source = SourceConfig("array_record", str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"images of 48 pixels, aspect pad, but the run asks for 24, pad"):
        list(eval_batches(data_config(source, tokenizer), model, 4))
    large = dataclasses.replace(model, vision=dataclasses.replace(model.vision, image_size=48))
    with pytest.raises(UserError, match="asks for 48, square"):
        list(eval_batches(data_config(source, tokenizer, image_aspect="square"), large, 4))


@pytest.fixture
def turned(tmp_path):
    """A LLaVA file of one row, whose image is stored on its side, and its folder."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 48, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "rows.json").write_text(
        json.dumps(
            [
                {
                    "image": "a.png",
                    "conversations": [
                        {"from": "human", "value": "<image>\nred?"},
                        {"from": "gpt", "value": "blue"},
                    ],
                }
            ]
        )
    )
    return tmp_path / "rows.json", tmp_path


@pytest.mark.parametrize("size", [0, 24])
def test_both_decodings_come_out_as_from_the_folder(turned, tokenizer, model, tmp_path, size):
    path, folder = turned
    seen = {}
    for decoding in ("upright", "original"):
        out = tmp_path / decoding
        manifest = prepare(path, (str(folder),), out, Recipe(size, "pad", "raw", decoding=decoding))
        assert manifest["recipe"]["decoding"] == decoding
        made = SourceConfig("array_record", str(out))
        (ours,) = eval_batches(data_config(made, tokenizer, image_decoding=decoding), model, 1)
        source = SourceConfig(path=str(path), images=str(folder))
        (wanted,) = eval_batches(data_config(source, tokenizer, image_decoding=decoding), model, 1)
        assert np.array_equal(ours.pixels, wanted.pixels)
        seen[decoding] = np.asarray(ours.pixels)
    assert not np.array_equal(seen["upright"], seen["original"])


def test_images_that_were_decoded_otherwise_are_refused(turned, tokenizer, model, tmp_path):
    path, folder = turned
    prepare(path, (str(folder),), tmp_path / "out", Recipe(24))
    source = SourceConfig("array_record", str(tmp_path / "out"))
    with pytest.raises(
        UserError,
        match=r"out holds images that were decoded upright, but the run has "
        "data.image_decoding original; prepare it with --decoding original",
    ):
        list(eval_batches(data_config(source, tokenizer, image_decoding="original"), model, 1))
    # Data prepared before there was a choice are upright.
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    del manifest["recipe"]["decoding"], manifest["crc32"]
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    assert list(eval_batches(data_config(source, tokenizer), model, 1))
    with pytest.raises(UserError, match="decoded upright"):
        list(eval_batches(data_config(source, tokenizer, image_decoding="original"), model, 1))


def test_records_come_back_by_number_and_pickle(tmp_path):
    records = [bytes([k]) * k for k in range(11)]
    shards = [
        write_shard(tmp_path, name, "key", records[start:end])
        for name, start, end in (("a", 0, 4), ("b", 4, 4), ("c", 4, 11))
    ]
    stored = Records(tmp_path, shards)
    assert list(stored) == records and [stored[k] for k in range(3, 7)] == records[3:7] and len(stored) == 11
    assert pickle.loads(pickle.dumps(stored))[9] == records[9]
    with pytest.raises(IndexError):
        stored[11]
    assert find_shard(tmp_path, "a", "key") == (shards[0], []) and find_shard(tmp_path, "a", "other") is None
    (tmp_path / "a").write_bytes(b"short")
    assert find_shard(tmp_path, "a", "key") is None


def test_swapped_shards_are_seen_by_training_and_by_verify(llava, tokenizer, model, tmp_path):
    path, folder, _ = llava
    prepare(path, (str(folder),), tmp_path, RAW, **SMALL)
    one, two, *_ = read_manifest(tmp_path)["shards"]["pictures"]
    assert (one.records, one.bytes) == (two.records, two.bytes)
    contents = [(tmp_path / shard.name).read_bytes() for shard in (one, two)]
    for shard, content in zip((two, one), contents, strict=True):
        (tmp_path / shard.name).write_bytes(content)
    config = data_config(SourceConfig("array_record", str(tmp_path)), tokenizer)
    another = pytest.raises(UserError, match=r"pictures-0000\d.* is damaged, or another shard")
    with another, make_iterator(config, model, 4, 0) as batches:
        next(batches)
    with pytest.raises(UserError, match="its SHA-256 is not the manifest's"):
        check(tmp_path, one)


def test_a_damaged_record_names_its_shard(llava, tmp_path):
    path, folder, _ = llava
    prepare(path, (str(folder),), tmp_path, RAW, **SMALL)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    # As version 0.1 wrote it: ArrayRecord's own checksums have to tell.
    manifest["shards"] = {kind: [shard[:4] for shard in group] for kind, group in manifest["shards"].items()}
    del manifest["crc32"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    file = tmp_path / manifest["shards"]["pictures"][0][0]
    content = bytearray(file.read_bytes())
    content[content.index(open_prepared(tmp_path).images[0]) + 100] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"pictures-00000.* is damaged at record 0"):
        open_prepared(tmp_path).images[0]
