"""Configs survive JSON exactly, and nothing unknown or mistyped gets in."""

import dataclasses
import json
import os
import types
import typing
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quecc_jax.config import CheckpointConfig, CompressorConfig, DataConfig, RunConfig, SourceConfig
from quecc_jax.config.compressors import REGISTRY, AveragePoolConfig
from quecc_jax.config.io import differences, from_dict, load_config, save_config, to_dict
from quecc_jax.config.renamed import SHARED
from quecc_jax.errors import UserError


def values(hint):
    """Everything that a field of this type may hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is CompressorConfig:
        return st.one_of(*map(values, REGISTRY))
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{f.name: values(hints[f.name]) for f in dataclasses.fields(hint)})  # type: ignore
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is types.UnionType:
        return st.one_of(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    return {
        int: st.integers(),
        bool: st.booleans(),
        type(None): st.none(),
        str: st.text(max_size=8),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }[hint]


@settings(max_examples=50, deadline=None)
@given(values(RunConfig))
def test_json_round_trip_is_exact(config):
    again = from_dict(RunConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert repr(again) == repr(config)  # == would let 1 pass for 1.0 and True


def test_saved_file_reads_back_and_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "run" / "config.json"
    first = RunConfig(data=DataConfig(sources=(SourceConfig(path="a", weight=2.0), SourceConfig())))
    save_config(first, path)
    assert load_config(path) == first

    def dies(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(OSError, match="disk full"):
        save_config(RunConfig(out="b"), path)
    assert load_config(path) == first


@pytest.mark.parametrize(
    "change, message",
    [
        ({"optimizer": {"lerning_rate": 1.0}}, "optimizer.lerning_rate is not.*mean learning_rate"),
        ({"zzz": 1}, "zzz is not a setting; known: out, model"),
        ({"train": {"steps": 1.5}}, "train.steps is 1.5 but must be a whole number"),
        ({"train": {"steps": True}}, "train.steps is True"),
        ({"train": {"stage": 1.5}}, "train.stage is 1.5 but must be a whole number"),
        ({"train": {"parts": ["tower"]}}, r"train.parts\[0\] is 'tower' but must be one of 'vision', "),
        ({"train": {"stage": True}}, "train.stage is True"),
        ({"train": 3}, "train must be an object"),
        (
            {"data": {"sources": [{"kindd": "pool"}]}},
            r"sources\[0\].kindd is not a setting; did you mean kind",
        ),
        ({"model": {"vision": {"levels": 3}}}, "model.vision.levels is 3 but must be a list"),
        ({"model": {"vision": {"levels": [1, "2"]}}}, r"model.vision.levels\[1\] is '2'"),
        ({"optimizer": {"learning_rate": float("nan")}}, "learning_rate is nan but must be a finite number"),
        ({"out": None}, "out is None but must be a text"),
        ([], "the config must be an object"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(UserError, match=message):
        from_dict(RunConfig, change)


def test_unreadable_files_are_sentences(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"out": ')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"outt": "a"}')
    with pytest.raises(UserError, match=r"config.json: outt is not a setting; did you mean out"):
        load_config(tmp_path / "config.json")


def test_differences_name_the_changed_settings():
    new = RunConfig(out="b", checkpoint=CheckpointConfig(every=7))
    assert list(differences(RunConfig(), new)) == ["checkpoint.every: 500 -> 7", "out: runs/default -> b"]


def test_what_a_compressor_of_0_1_did_not_read_is_left_out(tmp_path):
    """Its config.json had the settings of every compressor; values that were set in vain are named."""
    old = dict(SHARED, name="avgpool", kernel=6, stride=6)
    path = tmp_path / "config.json"
    for heads, notes in ((8, []), (4, ["model.compressor.heads 4 is not read by avgpool"])):
        path.write_text(json.dumps({"model": {"compressor": old | {"heads": heads}}}))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compressor = load_config(path).model.compressor
        assert compressor == AveragePoolConfig(kernel=6, stride=6)
        assert [str(w.message) for w in caught] == [f"{path}: {note}" for note in notes]
    path.write_text(json.dumps({"model": {"compressor": old | {"name": "none", "elastic": [1, 4]}}}))
    with pytest.raises(UserError, match=r"model.compressor.elastic is not a setting"):
        load_config(path)
