"""Rows as other programs write them: what is neither text nor an image's path is never passed over."""

import json

import numpy as np
import pytest

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.preparing.prepare import prepare
from quecc_jax.data.references import image_refs
from quecc_jax.data.sources.array_record import Recipe
from quecc_jax.data.sources.folders import Folders
from quecc_jax.errors import BadRow, UserError

TEXT = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}]
IMAGED = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]


@pytest.mark.parametrize(
    "ref, says",
    [
        ("https://example.org/a.jpg", "images by URL are not fetched; download it"),
        ("HTTP://example.org/a.jpg", "images by URL are not fetched"),
        ("ftp://a/b.png", "not fetched"),
        ("s3://bucket/a.jpg", "not fetched"),
        ("hf://datasets/a/b.jpg", "not fetched"),
        ("https:/example.org/a.jpg", "not fetched"),
        ("file:///data/a.jpg", "give the path of the file alone"),
        ("data:image/png;base64,iVBORw0KGgo=", "write it into a file"),
    ],
)
def test_addresses_are_no_paths(ref, says):
    for image in (ref, [ref], ["a.jpg", ref]):
        with pytest.raises(BadRow, match=says) as caught:
            image_refs({"image": image, "conversations": IMAGED})
        assert caught.value.fault == "picture missing" and "iVBOR" not in str(caught.value)


@pytest.mark.parametrize(
    "ref",
    [
        "a.jpg",
        "/data/a b.jpg",
        "../a.jpg",
        "gs://bucket/a.jpg",
        "C:\\a.jpg",
        3,
        b"\xff\xd8",
        "a:b.jpg",
        "data/a.jpg",
    ],
)
def test_paths_stay_as_they_are(ref):
    assert image_refs({"image": ref, "conversations": IMAGED}) == [ref]


@pytest.mark.parametrize(
    "more",
    [
        {"video": "a.mp4"},
        {"videos": ["a.mp4"]},
        {"Video": "a"},
        {"audio": "a.wav"},
        {"audio_path": "a"},
        {"depth": "d.png"},
        {"speech": {"path": "a.wav"}},
        {"point_cloud": "a.bin"},
        {"frames": ["1.jpg"]},
        {"video_url": "a"},
        {"images": ["a.jpg"]},
        {"img": "a.jpg"},
        {"image_path": "x"},
        {"pictures": ["a"]},
        {"source_file": "scan.nii.gz"},
        {"cam1": "left.png"},
        {"views": ["a.png", "b.png"]},
        {"scan": {"bytes": "abc", "path": None}},
        {"attachment": [{"path": "a.pdf"}]},
    ],
)
def test_other_inputs_are_refused(more):
    with pytest.raises(BadRow) as caught:
        image_refs({"id": 1, **more, "conversations": TEXT})
    assert caught.value.fault == "modality" and repr(next(iter(more))) in str(caught.value)


@pytest.mark.parametrize(
    "more", [{"video": "a.mp4"}, {"audios": ["a"]}, {"depth": "d.png"}, {"images": ["b.jpg"]}]
)
def test_other_inputs_are_refused_beside_an_image(more):
    with pytest.raises(BadRow, match=r"is not read|are read"):
        image_refs({"image": "a.jpg", **more, "conversations": IMAGED})


@pytest.mark.parametrize(
    "more",
    [
        {"video": None},
        {"videos": []},
        {"audio": ""},
        {"images": None},
        {"frames": 8},
        {"depth": 0.5},
        {"model": "gpt-4"},
        {"data_source": "videochat"},
        {"video_id": "abc"},
        {"note": "see a.jpg\nand b.jpg"},
        {"kind": "a/b"},
        {"task": "video captioning"},
    ],
)
def test_notes_about_a_row_are_no_inputs(more):
    assert image_refs({**more, "conversations": TEXT}) == []


def test_notes_about_an_image_are_no_inputs():
    """As ALLaVA's `url` and others' copies of the path."""
    row = {
        "image": "a.jpg",
        "url": "https://example.org/a.jpg",
        "image_path": "/data/a.jpg",
        "height": 3,
        "conversations": IMAGED,
    }
    assert image_refs(row) == ["a.jpg"]


@pytest.mark.parametrize(
    "said, bad",
    [
        ("<video>\nWhat happens?", True),
        ("What happens?\n<video>", True),
        ("<audio>What is said?", True),
        ("  <VIDEO> why?", True),
        ("<speech>", True),
        ("How do I use <video> in HTML?", False),
        ("<video>\n<source src='a.mp4'>\n</video>\nWhy does this not play?", False),
    ],
)
def test_placeholders_of_other_inputs(said, bad):
    row = {"conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": "<video>"}]}
    if not bad:
        assert image_refs(row) == []
        return
    with pytest.raises(BadRow, match=r"turn 1 asks about <.*>, and only text and images are read"):
        image_refs(row)


def test_a_turn_s_own_image_is_not_passed_over():
    turns = [{**TEXT[0], "image": "a.jpg"}, TEXT[1]]
    with pytest.raises(BadRow, match="turn 1 has 'image'"):
        image_refs({"conversations": turns})


def test_how_a_path_is_written(tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("train/a b.jpg", "100%.jpg"):
        (tmp_path / name).touch()
    folders = Folders((str(tmp_path),))
    assert folders.find("100%.jpg") == str(tmp_path / "100%.jpg")
    assert folders.find("gs://bucket/a.jpg") == "gs://bucket/a.jpg"
    assert folders.find("/data/a.jpg") == "/data/a.jpg"
    for ref, what in (("train\\a b.jpg", "backslashes"), ("train/a%20b.jpg", "percent signs")):
        with pytest.raises(BadRow, match=f"is not there but train/a b.jpg is; write it without {what}"):
            folders.find(ref)
    with pytest.raises(BadRow, match="is in none of"):
        folders.find("train\\c.jpg")


def test_rows_about_films_are_left_out_by_policy_and_never_learned(tmp_path, tokenizer, model):
    rows = [
        {"id": k, "conversations": [{"from": "human", "value": "red?"}, {"from": "gpt", "value": "blue"}]}
        for k in range(8)
    ]
    rows[3]["video"] = "a.mp4"
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    data = DataConfig(
        sources=(SourceConfig(path=str(path)),),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=48,
        images_per_row=0,
        bad_rows="skip",
        max_bad_share=1.0,
    )
    with make_iterator(data, model, 8, 0) as batches:
        batch = next(batches)
        assert batches.tally.reasons == {"modality": 1}
        assert sorted(np.asarray(batch.ids).tolist()) == list(range(8))
        assert np.array_equal(batch.segments.any(1), batch.ids != 3)
    with pytest.raises(UserError, match=r"row 4 \(line 1\): it has 'video'.*--bad skip"):
        prepare(path, (), tmp_path / "prepared", Recipe(0, "pad", "jpeg", 95))
