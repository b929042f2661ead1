"""Parquet data sets in the layouts of the Hub, written by the library that writes those."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.preparing.inline import inline_rows
from quecc_jax.data.preparing.prepare import prepare
from quecc_jax.data.references import image_refs
from quecc_jax.data.sources.array_record import Recipe
from quecc_jax.data.sources.parquet import ParquetRows, files_of
from quecc_jax.errors import BadRow, UserError
from tests.data.every_row import eval_batches
from tests.data.photos import photo
from tests.data.sources.hub_files import IMAGES, ROWS, answer, question

HUB = Path(__file__).parent / "hub"
SETS = ("the_cauldron/ai2d", "FineVision/ai2d_merged", "LLaVA-OneVision-Data/ai2d(internvl)")


def settings(source, tokenizer, **more):
    return DataConfig(
        sources=(source,),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=64,
        query_length=24,
        images_per_row=3,
        **more,
    )


def as_llava(folder, single):
    """The same rows as a LLaVA file with image files beside it."""
    rows = []
    for row in range(ROWS):
        names = [f"{row}-{k}.png" for k in range(min(IMAGES[row], 1 if single else 3))]
        for k, name in enumerate(names):
            photo(10 * row + k, 20 + row, 16 + k).save(folder / name)
        turns = []
        for turn in range(1 + row % 2):
            asked = "<image>\n" * len(names) * (not turn) + question(row, turn)
            turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer(row, turn)}]
        rows.append({"conversations": turns, **({"image": names} if names else {})})
    (folder / "rows.json").write_text(json.dumps(rows))
    return SourceConfig("llava_json", str(folder / "rows.json"), str(folder))


def same(left, right):
    for name, a, b in zip(left._fields, left, right, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or np.array_equal(a, b), name


@pytest.mark.parametrize("name", SETS)
def test_batches_are_those_of_the_same_rows_as_a_llava_file(name, tokenizer, model, tmp_path):
    wanted = settings(as_llava(tmp_path, name.startswith("LLaVA")), tokenizer)
    ours = settings(SourceConfig("parquet", str(HUB / name)), tokenizer)
    batches = list(eval_batches(ours, model, 4))
    assert len(batches) == 2
    for a, b in zip(batches, eval_batches(wanted, model, 4), strict=True):
        same(a, b)


@pytest.mark.parametrize("workers", [0, 1])
def test_packed_training_resumes_exactly(tokenizer, model, tmp_path, workers):
    source = SourceConfig("parquet", str(HUB / SETS[0]))
    data = settings(
        source, tokenizer, batching="packed", packed_images=4, cache=str(tmp_path), workers=workers
    )
    with make_iterator(data, model, 2, 0) as iterator:
        next(iterator)
        state = iterator.get_state()
        wanted = next(iterator)
    assert list(tmp_path.glob("lengths-*.npz"))
    with make_iterator(data, model, 2, 0) as iterator:
        iterator.set_state(state)
        same(next(iterator), wanted)


@pytest.mark.parametrize("name", SETS)
def test_prepared_and_tfds_rows_are_the_same(name, tokenizer, model, tmp_path):
    from quecc_jax.data.sources.tfds import LlavaRows

    direct = settings(SourceConfig("parquet", str(HUB / name)), tokenizer)
    manifest = prepare(HUB / name, (), tmp_path / "out", Recipe(), shard_images=3, shard_rows=4, workers=2)
    assert (manifest["rows"], manifest["unreadable"]["pictures"]) == (ROWS, 0)
    rows = inline_rows(HUB / name, (), Recipe())
    LlavaRows(rows=lambda: rows, data_dir=str(tmp_path / "tfds")).download_and_prepare()
    for source in (
        SourceConfig("array_record", str(tmp_path / "out")),
        SourceConfig("tfds", str(tmp_path / "tfds")),
    ):
        made = settings(source, tokenizer)
        for a, b in zip(eval_batches(made, model, 4), eval_batches(direct, model, 4), strict=True):
            same(a, b)


def test_rows_know_their_places_and_pickle():
    rows = pickle.loads(pickle.dumps(ParquetRows(HUB / SETS[0])))
    places = [rows.where(row).removeprefix(f"{HUB / SETS[0]}/") for row in range(len(rows))]
    assert places == [f"train-0000{row // 3}-of-00002.parquet, row {row % 3 + 1}" for row in range(ROWS)]
    assert rows[-1] == rows[ROWS - 1]
    with pytest.raises(IndexError):
        rows[ROWS]


def test_only_what_is_asked_for_is_read(monkeypatch):
    """Text is laid out, and images counted, without the bytes of any image."""
    rows, read = ParquetRows(HUB / SETS[0]), list[str]()
    whole = ParquetRows._read

    def noted(self, group, column):
        read.append(column)
        return whole(self, group, column)

    monkeypatch.setattr(ParquetRows, "_read", noted)
    assert [len(image_refs(row)) for row in rows] == list(IMAGES)
    assert set(read) == {"texts", "images.list.element.path"}
    read.clear()
    rows.image(image_refs(rows[4])[2])
    assert read == ["images"]


def test_files_of_one_split_are_chosen_and_must_be_complete(tmp_path):
    whole = HUB / SETS[0]
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        shutil.copy(whole / "train-00000-of-00002.parquet", tmp_path / f"{name}.parquet")
    assert [file.name[:5] for file in files_of(tmp_path, "train")] == ["train", "train"]
    assert [file.name for file in files_of(tmp_path, "test")] == ["test-00000-of-00001.parquet"]
    with pytest.raises(UserError, match="no split 'val' but test, train"):
        files_of(tmp_path, "val")
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="split train: shard 1 of 2 is missing"):
        files_of(tmp_path, "train")
    shutil.copy(tmp_path / "test-00000-of-00001.parquet", tmp_path / "more.parquet")
    with pytest.raises(UserError, match=r"names its split, and more.parquet, which does not"):
        files_of(tmp_path, "test")
    with pytest.raises(UserError, match=r"several data sets or splits \(ai2d\); name the folder of one"):
        files_of(whole.parent, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no .parquet files"):
        files_of(tmp_path / "empty", "train")


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


TEXTS = [[{"user": "red?", "assistant": "blue"}]]
BYTES = [[{"bytes": b"x", "path": "a.png"}]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, r"neither conversations nor texts among its columns \(text\)"),
        ({"texts": TEXTS, "conversations": TEXTS}, "conversations and texts among"),
        ({"texts": TEXTS, "image": BYTES[0], "images": BYTES}, "image and images among"),
        ({"texts": TEXTS, "video": ["a.mp4"]}, "column 'video', and only text and images"),
        ({"texts": TEXTS, "second": [b"x"]}, "column 'second', and only text and images"),
        ({"texts": ["red?"]}, "texts of type string, not a list of user and assistant"),
        ({"conversations": TEXTS}, "not a list of from and value"),
        ({"texts": TEXTS, "images": [["a.png"]]}, "not the bytes of files"),
    ],
)
def test_other_layouts_are_refused(columns, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ParquetRows(write(tmp_path / "a.parquet", **columns))


def test_files_that_differ_or_are_damaged_are_refused(tmp_path):
    write(tmp_path / "a.parquet", texts=TEXTS, images=BYTES)
    write(tmp_path / "b.parquet", texts=TEXTS)
    with pytest.raises(UserError, match=r"b\.parquet has other columns than .*a\.parquet"):
        ParquetRows(tmp_path)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"b.parquet is not a whole Parquet file"):
        ParquetRows(tmp_path)
    with pytest.raises(UserError, match=r"c.parquet cannot be read \(No such file"):
        ParquetRows(tmp_path / "c.parquet")


def test_bad_rows_are_named_and_counted(tokenizer, model, tmp_path):
    lost = {"bytes": None, "path": "a.png"}
    columns = {
        "texts": [*TEXTS * 2, [{"user": "red?", "assistant": None}], []],
        "images": [BYTES[0], [lost], [], None],
    }
    rows = ParquetRows(write(tmp_path / "a.parquet", **columns))
    with pytest.raises(BadRow, match=r"image 1 has no bytes in the table, but names a.png"):
        rows.image(image_refs(rows[1])[0])
    source = settings(SourceConfig("parquet", rows.path), tokenizer)
    with pytest.raises(UserError, match=r"a.parquet, row 1.*image in memory is not an image"):
        next(eval_batches(source, model, 1))
    with pytest.raises(UserError, match=r"image in memory is not an image.*or count such images"):
        prepare(rows.path, (), tmp_path / "strict", Recipe())
    manifest = prepare(rows.path, (), tmp_path / "out", Recipe(), skip_bad=True)
    assert manifest["unreadable"]["pictures"] == 2


def test_a_damaged_part_is_a_bad_row(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"texts": TEXTS * 400, "images": BYTES * 400})
    pq.write_table(table, path, row_group_size=100, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data[start + 60] ^= 1
    path.write_bytes(data)
    rows = ParquetRows(path)
    assert rows[0]["conversations"] and rows[399]["conversations"]
    with pytest.raises(BadRow, match=r"row group 2 of the file is damaged .*download it again"):
        rows[150]


def test_options_that_parquet_does_not_take_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds its images; leave --images out"):
        prepare(HUB / SETS[0], ("folder",), tmp_path / "out", Recipe())


def test_a_table_changed_since_makes_shards_anew(tmp_path):
    """What an interrupted preparation left of other bytes is not taken over."""
    path = write(tmp_path / "a.parquet", texts=TEXTS, images=BYTES)
    stamp = ParquetRows(path).stamp
    write(path, texts=TEXTS, images=[[{"bytes": b"y", "path": "a.png"}]])
    assert ParquetRows(path).stamp != stamp


def test_text_alone_is_read(tokenizer, model, tmp_path):
    path = write(tmp_path / "a.parquet", texts=TEXTS * 3)
    data = dataclasses.replace(settings(SourceConfig("parquet", str(path)), tokenizer), images_per_row=0)
    assert len(list(eval_batches(data, model, 3))) == 1
