"""Files that were changed, or hold numbers that mean nothing, are one sentence."""

import json

import pytest

from quecc_jax.errors import UserError
from quecc_jax.records import sealed
from scaling.saved_fit import load_fit
from scaling.scores import read_scores
from tests.stores_json import FIT

SCORES = {"params_b": [1, 2], "visual_tokens": [1, 4], "score": [[0.1, 0.2], [0.2, 0.4]]}
EVALUATION = {"checkpoint": "c", "data": "d", "visual_tokens": 4, "accuracy": 0.5}
TASK = {"headline": "f1", "metrics": {"f1": {"value": 50.0, "standard_error": None}}}
BENCHMARKS = {"checkpoint": "c", "visual_tokens": 4, "tasks": {"pope": TASK}}
LMMS = {"results": {"gqa": {"exact_match,none": 0.5}}, "config": {"model_args": {"visual_tokens": 4}}}
GRID = {
    "decoders": [{"name": "S", "params": 1000}],
    "cells": [{"decoder": "S", "visual_tokens": 4, "seed": 0, "query": "question", "scores": {"a": 0.5}}],
    "tasks": ["a"],
}
ABSURD = [
    "1e999",
    "-1e999",
    '"\\ud800"',
    "NaN",
    "9" * 5000,
    "9" * 400,
    "-1",
    '"x"',
    "[]",
    "{}",
    "[" * 9999,
    "true",
]


def refused(path, text, read):
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{path.name}|Evaluation \d") as told:
        read(path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 500


@pytest.mark.parametrize(
    "whole, number",
    [
        (SCORES, "0.4"),
        (SCORES, "4]"),
        (EVALUATION, "0.5"),
        (EVALUATION, "4,"),
        (BENCHMARKS, "50.0"),
        (BENCHMARKS, "4,"),
        (LMMS, "4}"),
        (GRID, "1000"),
        (GRID, "4,"),
        (GRID, '"a": 0.5'),
        (GRID, '"decoder": "S"'),
    ],
)
@pytest.mark.parametrize("absurd", ABSURD)
def test_numbers_that_are_none_are_refused_in_scores(tmp_path, whole, number, absurd):
    name, colon, _ = number.rpartition(" ")
    text = json.dumps(whole)
    assert number in text
    changed = text.replace(number, name + colon + absurd + number[-1] * (number[-1] in ",]}"))

    def read(path):
        return read_scores(path) if whole in (SCORES, GRID) else read_scores(f"{path}@7B", f"{path}@1B,4")

    refused(tmp_path / "one.json", changed, read)


@pytest.mark.parametrize(
    "key, absurd",
    [
        (key, absurd)
        for key in ("A", "alpha", "D", "query_tokens", "params_b", "visual_tokens", "tokens_convention")
        for absurd in ABSURD
        # A law may say that error grows.
        if (key, absurd) not in {("alpha", "-1"), ("D", "-1")}
    ],
)
def test_numbers_that_are_none_are_refused_in_a_fit(tmp_path, key, absurd):
    record = json.loads(FIT.read_text())
    was = json.dumps(record[key])
    text = json.dumps(record).replace(f'"{key}": {was}', f'"{key}": {absurd}')
    refused(tmp_path / "fit.json", text, lambda path: load_fit(str(path)))


@pytest.mark.parametrize("whole", [SCORES, EVALUATION, BENCHMARKS, LMMS, GRID])
def test_a_file_that_was_changed_is_refused_with_what_to_do(tmp_path, whole):
    path = tmp_path / "one.json"
    text = json.dumps(sealed(whole)).replace("4", "5", 1)
    path.write_text(text)
    with pytest.raises(UserError, match=r"one\.json.* is damaged, or was changed .*delete its entry 'crc32'"):
        read_scores(f"{path}@7B", f"{path}@1B") if whole in (EVALUATION, BENCHMARKS, LMMS) else read_scores(
            path
        )
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(sealed(json.loads(FIT.read_text()))).replace('"A": 0', '"A": 1', 1))
    with pytest.raises(UserError, match=r"fit\.json is damaged, or was changed"):
        load_fit(str(path))


def test_a_cell_too_long_for_a_table_is_refused(tmp_path):
    refused(tmp_path / "a.csv", 'params_b,1,4\n1,0.1,"' + "0" * 200_000 + '"\n', read_scores)
