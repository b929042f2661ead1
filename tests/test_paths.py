"""Files in a bucket, played by a directory behind the same libraries that reach real ones."""

import json

import pytest
from PIL import Image

from quecc_jax import paths
from quecc_jax.config import RunConfig
from quecc_jax.config.io import load_config, save_config
from quecc_jax.data.files import read_json
from quecc_jax.data.images import open_image
from quecc_jax.data.text.tokenizer import load_tokenizer
from quecc_jax.data.text.word_tokenizer import train_word_tokenizer
from quecc_jax.errors import UserError, run_cli
from quecc_jax.train.logs.records import Records, read_records
from quecc_jax.train.run_dir import copy_tokenizer
from tests.train.test_progress import record


@pytest.mark.parametrize(
    "path, remote", [("gs://bucket/run", True), ("runs/a", False), ("/data/runs", False), ("a:b/c", False)]
)
def test_what_lies_in_a_bucket(path, remote):
    assert paths.is_remote(path) == remote
    assert paths.is_remote(paths.as_path(path)) == remote
    assert str(paths.as_path(path) / "x") == (
        f"{path}/x" if remote else str(paths.Path(path, "x").absolute())
    )
    assert paths.as_path(path).name == path.rpartition("/")[2]


def test_configs_rows_and_images(bucket):
    save_config(RunConfig(out="gs://bucket/run"), "gs://bucket/run/config.json")
    assert load_config("gs://bucket/run/config.json") == RunConfig(out="gs://bucket/run")
    with pytest.raises(UserError, match=r"gs://bucket/no/config\.json does not exist"):
        load_config("gs://bucket/no/config.json")
    (bucket / "rows.json").write_text('[{"id": 1}]')
    assert read_json("gs://bucket/rows.json") == [{"id": 1}]
    with pytest.raises(UserError, match=r"gs://bucket/none\.json cannot be read"):
        read_json("gs://bucket/none.json")
    Image.new("RGB", (3, 2), (1, 2, 3)).save(bucket / "a.png")
    assert open_image("gs://bucket/a.png").getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(UserError, match=r"gs://bucket/b\.png does not exist"):
        open_image("gs://bucket/b.png")


def test_tokenizers_there_and_back(bucket, tmp_path):
    train_word_tokenizer(["how many dots"], tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "model.safetensors").write_text("weights")
    copy_tokenizer(str(tmp_path / "tokenizer"), paths.as_path("gs://bucket/run/tokenizer"))
    assert {p.name for p in (bucket / "run" / "tokenizer").iterdir()} == {
        p.name for p in (tmp_path / "tokenizer").iterdir()
    } - {"model.safetensors"}
    here, there = load_tokenizer(str(tmp_path / "tokenizer")), load_tokenizer("gs://bucket/run/tokenizer")
    assert here.encode("how many dots") == there.encode("how many dots") != ()
    copy_tokenizer("gs://bucket/run/tokenizer", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (
        tmp_path / "tokenizer" / "tokenizer.json"
    ).read_bytes()
    with pytest.raises(UserError, match="gs://bucket/none"):
        load_tokenizer("gs://bucket/none")


def test_records_survive_in_a_bucket(bucket, monkeypatch):
    run = paths.as_path("gs://bucket/run")
    records = Records(run, 0, 2)
    for step in (1, 2, 3):
        records.write(record(step))
    monkeypatch.setattr(paths, "UPLOAD_S", -1.0)
    records.write(record(4))
    assert [r["step"] for r in read_records(run)] == [1, 2, 3, 4]
    with Records(run, 2, 2) as again:
        again.write(record(3, loss=9.0))
    assert [(r["step"], r["loss"]) for r in read_records(run)] == [(1, 1.5), (2, 1.5), (3, 9.0)]


def test_what_a_library_writes_here_ends_up_there(bucket):
    with paths.local_output("gs://bucket/profile") as here:
        (here / "plugins").mkdir()
        (here / "plugins" / "trace.json").write_text(json.dumps([1]))
    assert json.loads((bucket / "profile" / "plugins" / "trace.json").read_text()) == [1]


def test_a_path_has_no_dots_and_keeps_its_links(tmp_path):
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "inner")
    assert paths.as_path(tmp_path / "link") == tmp_path / "link"
    assert paths.as_path(tmp_path / "link" / ".." / "run") == (tmp_path / "real").resolve() / "run"


def test_a_bucket_without_its_library_is_a_sentence(capsys):
    def missing():
        raise ImportError("Please install gcsfs to access Google Storage")

    with pytest.raises(SystemExit, match="1"):
        run_cli(missing)
    assert capsys.readouterr().err.startswith("error: paths in a bucket (gs://) need the package gcsfs")


def test_a_damaged_copy_of_a_bucket_s_file_is_fetched_again(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (bucket / "rows.json").write_text("[1, 2]")
    copy = paths.cached("gs://bucket/rows.json")
    assert copy.read_text() == "[1, 2]" and paths.cached("gs://bucket/rows.json") == copy
    copy.write_text("[1, 3]")
    again = paths.cached("gs://bucket/rows.json")
    assert again.read_text() == "[1, 2]"
    assert [path.name for path in paths.cache_folder().iterdir()] == [again.name]
