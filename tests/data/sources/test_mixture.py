"""LLaVA-NeXT's mixtures as one list of rows: what they name, what they refuse, what a run makes of them."""

import dataclasses
import json
import os
import pickle

import numpy as np
import pytest
import yaml

from quecc_jax.config import DataConfig, SourceConfig
from quecc_jax.data.lengths import _files
from quecc_jax.data.pipeline import make_iterator
from quecc_jax.data.preparing.prepare import prepare
from quecc_jax.data.sources.array_record import Recipe, open_prepared
from quecc_jax.data.sources.json_rows import RowFile
from quecc_jax.data.sources.mixture import Mixture, Part, open_rows
from quecc_jax.errors import BadRow, UserError


def row(name):
    turns = [{"from": "human", "value": "red?"}, {"from": "gpt", "value": "blue"}]
    return {"id": name, "conversations": turns}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two files in the working directory, which the paths of a mixture are relative to."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("a", 7), ("b", 10)):
        rows = [row(f"{name}{k}") for k in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows, indent=1))
    return tmp_path


def mixture(folder, *sets):
    """The path of a mixture of (file, strategy)."""
    told = [{"json_path": path, **({} if how is None else {"sampling_strategy": how})} for path, how in sets]
    (folder / "mix.yaml").write_text("\ufeff" + yaml.safe_dump({"datasets": told}), encoding="utf-8")
    return str(folder / "mix.yaml")


def names(path):
    return [one["id"] for one in open_rows(path)]


def test_rows_stand_one_file_behind_the_other_and_know_their_place(folder):
    path = mixture(
        folder, ("b.json", "end:25%"), ("a.json", "first:0"), ("a.json", "first:2"), ("a.json", None)
    )
    rows = open_rows(path)
    assert names(path) == ["b7", "b8", "b9", "a0", "a1", *(f"a{k}" for k in range(7))]
    assert rows.where(1) == f"b.json, row 9 (line {RowFile('b.json').where(8).split('line ')[1]}"
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows) and rows[-1]["id"] == "a6"
    with pytest.raises(IndexError):
        rows[12]
    assert isinstance(open_rows("a.json"), RowFile)
    assert names(f"{folder}/{{b,a}}.json") == [f"b{k}" for k in range(10)] + [f"a{k}" for k in range(7)]


def test_a_random_sample_is_the_same_wherever_it_is_drawn(folder):
    path = mixture(folder, ("a.json", "first:1"), ("b.json", "random:40%"))
    drawn = names(path)[1:]
    assert len(set(drawn)) == 4 and drawn == sorted(drawn) != [f"b{k}" for k in range(4)]
    alone = mixture(folder, ("b.json", "random:4"))
    assert names(alone) == drawn
    assert len({tuple(Part(name, "random", 4).chosen(10)) for name in "abcdefgh"}) > 1


@pytest.mark.parametrize(
    "told, says",
    [
        ("datasets: [", "is not YAML"),
        ("- a", "has no list of datasets"),
        ("datasets: {a: 1}", "has no list"),
        ("datasets: []", "has no list"),
        ("datasets: [{json_path: a.txt}]", "data set 1 names no .json or"),
        ("datasets: [{json_path: a.json, weight: 2}]", "has 'weight', which LLaVA-NeXT does not read"),
        *(
            (f"datasets: [{{json_path: a.json, sampling_strategy: {how!r}}}]", "has sampling_strategy")
            for how in (
                "first",
                "first:",
                "foo:3",
                "first:-2",
                "first:1.5%",
                "All",
                "end:0",
                "end:0%",
                "random:x",
            )
        ),
        ("datasets: [{json_path: a.json, sampling_strategy: null}]", "has sampling_strategy None"),
        ("datasets: [{json_path: none.json}]", "none.json cannot be read"),
    ],
)
def test_what_a_mixture_must_not_say(folder, told, says):
    (folder / "mix.yml").write_text(told)
    with pytest.raises(UserError, match=says):
        open_rows(folder / "mix.yml")
    with pytest.raises(UserError, match="cannot be read"):
        open_rows(folder / "none.yaml")


def test_a_run_reads_a_mixture_and_says_which_file_is_bad(folder, tokenizer, model):
    path = mixture(folder, ("a.json", "first:3"), ("b.json", "end:5"))
    data = DataConfig(
        sources=(SourceConfig(path=path),),
        tokenizer=tokenizer.directory,
        template="short",
        max_length=48,
        images_per_row=0,
    )
    with make_iterator(data, model, 8, 0) as batches:
        assert sorted(np.asarray(next(batches).ids).tolist()) == list(range(8))
    rows = json.loads((folder / "b.json").read_text())
    rows[9]["video"] = "a.mp4"
    (folder / "b.json").write_text(json.dumps(rows))
    with make_iterator(data, model, 8, 0) as batches, pytest.raises(UserError, match=r"b\.json, row 10 "):
        next(batches)


def test_lengths_are_measured_anew_when_a_file_of_the_mixture_changes(folder):
    path = mixture(folder, ("a.json", None), ("b.json", "end:5"))
    one, braces = SourceConfig(path=path), SourceConfig(path="{a,b}.json")
    before = _files(one), _files(braces)
    assert [len(files) for files in before] == [3, 2]
    os.utime(folder / "b.json", (1, 1))
    assert _files(one) != before[0] and _files(braces) != before[1]
    assert _files(dataclasses.replace(one, path="none.json")) == []


def test_prepared_data_of_a_mixture(folder):
    path = mixture(folder, ("a.json", "first:2"), ("b.json", "end:2"))
    made = prepare(path, (), folder / "out", Recipe(0, "pad", "jpeg", 95))
    assert made["rows"] == 4
    assert [one["id"] for one in open_prepared(str(folder / "out")).rows] == ["a0", "a1", "b8", "b9"]
    rows = open_rows(path)
    assert isinstance(rows, Mixture) and rows.size == sum(os.path.getsize(f"{name}.json") for name in "ab")


def test_a_damaged_row_is_of_its_file(folder):
    (folder / "c.jsonl").write_text('{"id": "c0"}\n{"id": \n')
    rows = open_rows(mixture(folder, ("a.json", "first:1"), ("c.jsonl", "all")))
    with pytest.raises(BadRow):
        rows[2]
    assert rows.where(2) == "c.jsonl, line 2"
