"""Conversation files of other projects: mixtures, byte order marks, addresses, other inputs.

Expected rows of mixtures were made with LLaVA-NeXT's own code (`LazySupervisedDataset.__init__` of
llava/train/train.py at df17966), run on files of 7, 10 and 3 rows that are named as here. Random samples are
drawn without a seed there, so their number alone is compared.
"""

import json
from typing import Any

import pytest
import yaml

from quecc_jax.data.files import read_json
from quecc_jax.data.references import image_refs
from quecc_jax.data.sources.mixture import open_rows
from quecc_jax.errors import UserError

A = [f"a{k}" for k in range(7)]
MIXTURES = {
    "all": A,
    "first:3": A[:3],
    "first:10%": A[:1],
    "first:15%": A[:2],
    "end:2": A[5:],
    "end:20%": A[5:],
    "first:0": [],
    "first:100": A,
    "end:100": A,
    "first: 3": A[:3],
    "first:150%": A,
    "end:1%": A[6:],
}
RANDOM = {"random:4": 4, "random:10%": 1, "random:200%": 7}
ROW = {"id": 1, "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}]}
IMAGED = {
    "id": 1,
    "image": "https://example.org/a.jpg",
    "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 7), ("b", 10)):
        (tmp_path / f"{name}.json").write_text(json.dumps([f"{name}{k}" for k in range(count)]))
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(f"c{k}") + "\n" for k in range(3)))
    return tmp_path


def mixed(folder, *sets):
    told = {"datasets": [{"json_path": path, "sampling_strategy": how} for path, how in sets]}
    (folder / "mix.yaml").write_text(yaml.safe_dump(told))
    return list(open_rows("mix.yaml"))


@pytest.mark.parametrize("how", MIXTURES)
def test_mixtures(conforms, folder, how):
    conforms("LLaVA-NeXT mixture", how, MIXTURES[how], mixed(folder, ("a.json", how)))


@pytest.mark.parametrize("how", RANDOM)
def test_random_samples(conforms, folder, how):
    rows = mixed(folder, ("a.json", how))
    conforms("LLaVA-NeXT mixture", how, RANDOM[how], len(set(rows)))


def test_several_files(conforms, folder):
    sets = ("b.json", "end:25%"), ("c.jsonl", "all"), ("a.json", "first:2"), ("a.json", "end:1")
    expected = ["b7", "b8", "b9", "c0", "c1", "c2", "a0", "a1", "a6"]
    conforms("LLaVA-NeXT mixture", "several files", expected, mixed(folder, *sets))
    expected = [f"b{k}" for k in range(10)] + A
    conforms("LLaVA-NeXT mixture", "{b,a}.json", expected, list(open_rows(f"{folder}/{{b,a}}.json")))


TEXTS = {
    "byte order mark .json": ("rows.json", b"\xef\xbb\xbf" + json.dumps([ROW]).encode()),
    "byte order mark .jsonl": ("rows.jsonl", b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n"),
    "CRLF .json": ("rows.json", json.dumps([ROW], indent=1).replace("\n", "\r\n").encode() + b"\r\n"),
    "list in .jsonl": ("rows.jsonl", json.dumps([ROW]).encode()),
    "pretty list in .jsonl": ("rows.jsonl", json.dumps([ROW], indent=2).encode()),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts(conforms, folder, case):
    """Reported as datasets #8241; what the writer put in is expected."""
    name, raw = TEXTS[case]
    (folder / name).write_bytes(raw)
    conforms("rows", case, [ROW], list(open_rows(name)))
    conforms("questions", case, [ROW], read_json(folder / name))


ASKED = {"conversations": [{"from": "human", "value": "<video>\nWhy?"}, {"from": "gpt", "value": "So."}]}
READ = "only text and images are read; leave the row out"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "image by URL": (IMAGED, "by URL are not fetched; download it and give the path of the file"),
    "video key": ({**ROW, "video": "a.mp4"}, READ),
    "video placeholder": (ASKED, READ),
    "audios key": ({**ROW, "audios": ["a.wav"]}, READ),
    "images key": (
        {**ROW, "images": ["a.jpg"]},
        "name the images of a row 'image', a path or a list of paths",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused(conforms, case):
    row, says = REFUSED[case]
    with pytest.raises(UserError) as caught:
        image_refs(row)
    conforms("row refused", case, True, str(caught.value).endswith(says))
