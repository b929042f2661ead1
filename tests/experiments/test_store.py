"""What a grid keeps in its directory: damaged and exchanged files are seen, and their jobs run anew."""

import dataclasses
import json
import os

import pytest

from quecc_jax.errors import UserError
from quecc_jax.experiments import store
from quecc_jax.experiments.grid import Grid, Step
from quecc_jax.experiments.runner import run_grid
from quecc_jax.records import Damaged


@pytest.fixture
def grid(tmp_path) -> Grid:
    steps = tuple(Step(name, "tests.experiments.fake_jobs:count") for name in "abc")
    return Grid("fake", str(tmp_path), (), steps)


def test_results_that_are_damaged_or_another_job_s_are_said_and_made_anew(grid, tmp_path, capsys):
    run_grid(grid)
    before = {name: found["result"] for name, found in store.finished(grid).items()}
    assert before == {"a": 1, "b": 2, "c": 3}
    files = [store.result_file(grid, name) for name in "abc"]
    one, two = files[0].read_text(), files[1].read_text()
    files[0].write_text(two)
    files[1].write_text(one)
    with pytest.raises(Damaged, match=r"a\.json is the result of b"):
        store.finished(grid)
    files[2].write_text(files[2].read_text().replace('"result": 3', '"result": 4'))
    capsys.readouterr()
    assert run_grid(grid).done == ["a", "b", "c"]
    said = capsys.readouterr().err
    assert "a.json is the result of b; a is run anew" in said and "b.json is the result of a" in said
    assert "c.json is damaged" in said and "Traceback" not in said
    assert [found["result"] for found in store.finished(grid).values()] == [4, 5, 6]
    assert json.loads((tmp_path / "jobs" / "c.damaged").read_text())["result"] == 4


def test_a_result_of_another_grid_is_seen_and_one_of_an_earlier_version_is_taken(grid):
    run_grid(grid)
    file = store.result_file(grid, "a")
    other = dataclasses.replace(grid, query_tokens=3.0)
    store.write_result(other, "a", 1.0, 9)
    with pytest.raises(Damaged, match=r"a\.json is the result of a under other settings"):
        store.finished(grid)
    file.write_text('{"seconds": 1, "result": 7}')
    assert store.finished(grid)["a"] == {"seconds": 1.0, "result": 7}


def test_a_damaged_count_of_seconds_begins_at_0_and_is_said(grid, tmp_path, capsys):
    file = tmp_path / "seconds.json"
    file.write_text("12.5")
    assert store.total_seconds(grid) == 12.5
    store.add_seconds(grid, 1.0)
    assert store.total_seconds(grid) == 13.5
    file.write_text(file.read_text().replace("13.5", "23.5"))
    store.add_seconds(grid, 1.0)
    assert store.total_seconds(grid) == 1.0
    assert "seconds.json is damaged" in capsys.readouterr().err
    store.add_seconds(dataclasses.replace(grid, query_tokens=3.0), 2.0)
    assert "seconds.json is another grid's; it is counted from 0" in capsys.readouterr().err
    file.unlink()
    store.add_seconds(grid, 1.0)
    assert "seconds.json is lost; it is counted from 0" in capsys.readouterr().err
    assert store.total_seconds(grid) == 1.0


@pytest.mark.parametrize("text", ["", "{", "[" * 9999, '{"grid": 1}', '{"jobs": {"a": "b"}}'])
def test_a_damaged_claim_is_one_sentence(grid, tmp_path, text):
    store.claim(grid)
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(UserError, match=r"grid\.json .*; delete it if the results beside it are this grid's"):
        store.claim(grid)


def test_a_claim_that_is_lost_is_said(grid, tmp_path, capsys):
    store.claim(grid)
    assert store.total_seconds(grid) == 0 and not capsys.readouterr().err
    store.claim(grid)
    assert not capsys.readouterr().err
    (tmp_path / "grid.json").unlink()
    store.claim(grid)
    assert "grid.json is lost: the grid counts as started now" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"share": 0.5}', '{"job": "b", "share": 2, "note": ""}'])
def test_progress_that_cannot_be_read_is_the_beginning(grid, tmp_path, text):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.progress").write_text(text)
    assert store.read_progress(tmp_path / "jobs", "a") == (0.0, "starting")


def test_progress_does_not_wait_for_the_disk(grid, tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    monkeypatch.setattr(os, "fsync", lambda handle: pytest.fail("it waits"))
    store.write_progress(grid, "a", 0.25, "a quarter")
    assert store.read_progress(tmp_path / "jobs", "a") == (0.25, "a quarter")
    assert store.read_progress(tmp_path / "jobs", "b") == (0.0, "starting")
