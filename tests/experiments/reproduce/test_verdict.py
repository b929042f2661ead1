"""Our row beside the paper's: tolerances, verdicts, scores that servers give."""

import json
import math
from typing import Any

import pytest

from quecc_jax.errors import UserError
from quecc_jax.evaluate.published import published
from quecc_jax.experiments.reproduce.verdict import (
    MME_IMAGES,
    cells,
    give,
    markdown,
    read_given,
    record,
    tolerance,
)
from tests.experiments.reproduce.test_run import SCORED

HEADS = {"pope": "f1", "mme": "perception", "mmbench": "circular", "scienceqa": "accuracy/image"}


def scored(**scores: float | None) -> Any:
    """results.json with those scores; a server's benchmark has None in its place."""
    tasks = {}
    for task, score in scores.items():
        head = HEADS.get(task, "accuracy")
        metrics = {head: {"value": score, "standard_error": 1.0}} if score is not None else {}
        tasks[task] = {**SCORED, "headline": head if metrics else None, "metrics": metrics}
    return {"tasks": tasks, "visual_tokens": 16}


def row(found):
    return {one.task: (one.verdict, one.ours) for one in found}


@pytest.mark.parametrize(
    ("task", "score", "questions"),
    [
        ("gqa", 59.0, 12578),
        ("mmbench", 62.2, 1164),
        ("pope", 83.4, 8910),
        ("scienceqa", 70.7, 2017),
        ("textvqa", 51.3, 5000),
        ("vizwiz", 47.7, 8000),
        ("vqav2", 74.5, 107394),
    ],
)
def test_a_tolerance_is_twice_a_binomial_standard_error(task, score, questions):
    assert tolerance(task, score) == pytest.approx(2 * math.sqrt(score * (100 - score) / questions))


def test_mme_s_is_that_of_images_that_are_right_or_wrong_as_a_whole():
    """By simulation."""
    import numpy as np

    assert 2 * sum(MME_IMAGES) == 2374 - 260
    rng, share = np.random.default_rng(0), 1408 / 2000
    sums = sum(200 * rng.binomial(n, share, 200_000) / n for n in MME_IMAGES)
    assert np.mean(sums) == pytest.approx(1408, abs=1)
    assert tolerance("mme", 1408.0) == pytest.approx(2 * np.std(sums), rel=0.01)


def test_every_cell_of_the_paper_s_row_has_a_verdict(tmp_path):
    results = scored(gqa=59.8, mmbench=65.2, mme=1300.0, pope=83.4, scienceqa=70.7, textvqa=51.3, vqav2=None)
    found = cells(16, results, {}, tmp_path)
    assert [one.column for one in found] == published()["columns"]
    assert row(found) == {
        "gqa": ("within", 59.8),
        "mmbench": ("above", 65.2),
        "mme": ("below", 1300.0),
        "pope": ("within", 83.4),
        "scienceqa": ("within", 70.7),
        "textvqa": ("within", 51.3),
        "vizwiz": ("not run", None),
        "vqav2": ("to upload", None),
    }
    assert {one.task: one.paper for one in found}["mme"] == 1408.0
    assert f"upload {tmp_path}/vqav2/vqav2_upload.json to eval.ai challenge 830" in found[-1].note
    text = markdown(found, 16, False)
    assert "| paper, QueCC, V = 16 | 59.0 ± 0.9 | 62.2 ± 2.8 | 1408.0 ± 83.9 | 83.4 ± 0.8 |" in text
    assert "| ours | 59.8 | 65.2 | 1300.0 | 83.4 | 70.7 | 51.3 | – | – |" in text
    assert "POPE: the mean F1 of three splits" in text and "rehearsal" not in text
    assert "scores mean nothing" in markdown(found, 16, True)
    assert json.loads(json.dumps(record(found, 16, False)))["cells"][1]["verdict"] == "above"


def test_the_edge_of_a_tolerance_is_within(tmp_path):
    wide = tolerance("gqa", 59.0)
    for ours, word in (
        (59.0 + wide - 1e-9, "within"),
        (59.0 - wide + 1e-9, "within"),
        (59.0 - wide - 1e-6, "below"),
    ):
        assert row(cells(16, scored(gqa=ours), {}, tmp_path))["gqa"][0] == word


def test_other_rows_are_held_against_their_own(tmp_path):
    found = {v: cells(v, None, {}, tmp_path)[0].paper for v in (1, 4, 16, 36)}
    assert found == {1: 53.5, 4: 56.5, 16: 59.0, 36: 60.5}


def test_a_server_s_score_is_of_the_file_that_was_uploaded(tmp_path):
    file, upload = tmp_path / "servers.json", tmp_path / "vqav2/vqav2_upload.json"
    upload.parent.mkdir()
    upload.write_text("answers")
    give(file, "vqav2=74.6", tmp_path)
    results = scored(vqav2=None, vizwiz=None)
    found = cells(16, results, read_given(file), tmp_path)
    assert row(found)["vqav2"] == ("within", 74.6) and row(found)["vizwiz"] == ("to upload", None)
    give(file, "vqav2=70", tmp_path)
    assert row(cells(16, results, read_given(file), tmp_path))["vqav2"] == ("below", 70.0)
    upload.write_text("answers of another model")
    last = cells(16, results, read_given(file), tmp_path)[-1]
    assert (last.verdict, last.ours) == (
        "to upload",
        None,
    ) and "its score is of other answers; upload" in last.note


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("vqav3=1", "that is TASK=SCORE of no server; give one of vizwiz, vqav2, such as vqav2=76.1"),
        ("vqav2", "that is TASK=SCORE of no server"),
        ("gqa=60", "gqa is scored here, not by a server"),
        ("vqav2=much", "'much' is no score from 0 to 100"),
        ("vqav2=746", "'746' is no score from 0 to 100"),
        ("vqav2=nan", "'nan' is no score"),
        ("vqav2=74.6", "vqav2_upload.json is not there, so nothing can have been uploaded; evaluate first"),
    ],
)
def test_scores_that_cannot_be_are_one_sentence(tmp_path, told, sentence):
    with pytest.raises(UserError, match=rf"^--score {told}: .*{sentence}"):
        give(tmp_path / "servers.json", told, tmp_path)
    assert not (tmp_path / "servers.json").exists()
