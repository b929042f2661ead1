"""Attempts at the jobs of a grid, and the table of what became of its cells."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.commands.sweep import check_place
from quecc_jax.errors import UserError
from quecc_jax.experiments import cell as cell_module
from quecc_jax.experiments.attempts import attempt, here, read_attempts
from quecc_jax.experiments.grid import Benchmarks, digests
from quecc_jax.experiments.runner import run_grid, run_one
from quecc_jax.experiments.status import SILENT_S, status, status_of
from quecc_jax.experiments.store import write_progress, write_result
from quecc_jax.records import Damaged
from quecc_jax.train.preemption import Preempted
from tests.experiments.small_grid import small_grid, write_config

EMPTY: dict[str, Any] = {"rows": [], "losses": {}, "samples": []}


@pytest.fixture
def grid(tmp_path):
    return small_grid(tmp_path / "out")


@pytest.fixture
def runs(monkeypatch):
    """What becomes of a cell: an exception that is raised, or nothing. By name; the test changes it."""
    outcomes: dict[str, BaseException] = {}

    def run_cell(grid, cell, report):
        report(1, 2, "half")
        if cell.name in outcomes:
            raise outcomes[cell.name]
        return EMPTY

    monkeypatch.setattr(cell_module, "run_cell", run_cell)
    return outcomes


def of(grid, name, now=None):
    cell = next(cell for cell in grid.cells if cell.name == name)
    began = read_attempts(grid, name)[-1]["began"] if now is None else now
    return status_of(grid, cell, digests(grid), began)


def test_attempts_are_kept_oldest_first_with_how_they_ended(grid, runs):
    name = "w32-v1-s0"
    runs[name] = ValueError("the disk is made of cheese")
    with pytest.raises(ValueError, match="cheese"):
        run_one(grid, name)
    runs[name] = Preempted("it is needed elsewhere")
    with pytest.raises(Preempted):
        run_one(grid, name)
    del runs[name]
    run_one(grid, name)
    run_one(grid, name)  # It has a result: that is no attempt.
    attempts = read_attempts(grid, name)
    assert [one["outcome"] for one in attempts] == ["failed", "preempted", "done"]
    assert all(one["processes"] == 1 and one["host"] == os.uname().nodename for one in attempts)
    times = [time or 0.0 for one in attempts for time in (one["began"], one["ended"])]
    assert times == sorted(times)


def test_the_table_says_what_became_of_every_cell(grid, runs):
    failed, preempted, done, waiting = (cell.name for cell in grid.cells)
    runs |= {failed: ValueError("the disk is made of cheese"), preempted: Preempted("elsewhere")}
    for name in (failed, preempted, done):
        try:
            run_one(grid, name)
        except (ValueError, Preempted):
            continue
    text = status(grid, grid.cells)
    lines = {line.split()[0]: line for line in text.splitlines()}
    host = os.uname().nodename
    assert re.search(
        rf"failed +1 +0\.00 +{host} +\d{{4}}-.* ValueError: the disk is made of cheese$", lines[failed]
    )
    assert re.search(rf"preempted +1 +0\.00 +{host}", lines[preempted])
    assert re.search(rf"done +1 +0\.00 +{host}", lines[done])
    assert re.search(r"waiting +0$", lines[waiting])
    assert text.endswith("4 cells: 1 failed, 1 preempted, 1 done, 1 waiting")


def test_what_runs_is_told_from_what_has_fallen_silent(grid):
    name = grid.cells[0].name
    with attempt(grid, name, 4, lambda _: "failed"):
        Path(grid.out, "jobs").mkdir()
        write_progress(grid, name, 0.25, "stage 1, loss 2.5")
        progress = Path(grid.out, "jobs", f"{name}.progress")
        began = read_attempts(grid, name)[0]["began"]
        os.utime(progress, (began + 100, began + 100))
        one = of(grid, name, began + 112)
        assert (one.state, one.note) == ("running", "25 % stage 1, loss 2.5, 0:12 ago")
        assert one.seconds == pytest.approx(100)
        assert of(grid, name, began + 101 + SILENT_S).state == "silent"
        assert f"{os.uname().nodename} x 4" in status(grid, grid.cells, began)


def test_a_damaged_result_and_damaged_attempts_are_said(grid, runs):
    one, other = grid.cells[:2]
    run_one(grid, one.name)
    file = Path(grid.out, "jobs", f"{one.name}.json")
    file.write_text(file.read_text().replace('"seconds"', '"seconds "'))
    assert of(grid, one.name).state == "damaged"
    file = Path(grid.out, "attempts", f"{one.name}.json")
    record = json.loads(file.read_text())
    Path(grid.out, "attempts", f"{other.name}.json").write_text(json.dumps(record))
    with pytest.raises(
        Damaged, match=f"is of {one.name} or of other settings; what was kept of attempts is not"
    ):
        read_attempts(grid, other.name)
    waiting = of(grid, other.name, 0.0)
    assert waiting.state == "waiting" and "is not used" in waiting.note
    elsewhere = dataclasses.replace(grid, query_tokens=9.0)
    with pytest.raises(Damaged):
        read_attempts(elsewhere, one.name)


def test_damaged_attempts_do_not_keep_a_cell_from_running(grid, runs, capsys):
    name = grid.cells[0].name
    run_one(grid, grid.cells[1].name)
    Path(grid.out, "attempts", f"{name}.json").write_text("{")
    run_one(grid, name)
    assert len(read_attempts(grid, name)) == 1
    assert "attempts is not used" in capsys.readouterr().err


def test_results_of_an_earlier_version_have_no_attempts_and_are_done(grid):
    name = grid.cells[0].name
    Path(grid.out, "jobs").mkdir(parents=True)
    write_result(grid, name, 7200.0, EMPTY)
    one = of(grid, name, 0.0)
    assert one.state == "done" and one.attempts == [] and one.seconds == 7200
    assert re.search(rf"{name} +done +0 +2\.00", status(grid, grid.cells))


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "17"}, "slurm 17"),
        ({"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "slurm 12_3"),
        ({"JOBSET_NAME": "quecc-a"}, "jobset quecc-a"),
    ],
)
def test_a_scheduler_s_name_of_the_job(environment, place):
    assert here(environment).place == place


def test_only_runs_one_cell_and_refuses_what_it_cannot(grid, runs):
    one, other = grid.cells[:2]
    run_one(grid, one.name)
    assert [path.name for path in Path(grid.out, "jobs").iterdir()] == [f"{one.name}.json"]
    with pytest.raises(UserError, match="w32-v1-s1 is no job of the grid sweep; did you mean w32-v1-s0"):
        run_one(grid, "w32-v1-s1")
    needing = dataclasses.replace(grid.cells[2], needs=(other.name,))
    cells = (one, other, needing, grid.cells[3])
    grid = dataclasses.replace(grid, cells=cells, out=f"{grid.out}-2")
    with pytest.raises(UserError, match=f"{needing.name} needs {other.name}, which has no result yet"):
        run_one(grid, needing.name)


def test_attempts_of_a_whole_grid_are_kept_too(grid, runs):
    run_grid(grid)
    assert {len(read_attempts(grid, cell.name)) for cell in grid.cells} == {1}


def test_a_grid_in_a_bucket(bucket, tmp_path, runs):
    """Results, scores, attempts and failures lie there, and nothing in a directory that is called gs:."""
    grid = small_grid("gs://bucket/sweep")
    failed = grid.cells[1].name
    runs[failed] = ValueError("cheese")
    outcome = run_grid(grid)
    assert outcome.failed == [failed] and len(outcome.done) == 3
    text = status(grid, grid.cells)
    assert text.endswith("4 cells: 3 done, 1 failed") and "ValueError: cheese" in text
    file = bucket / f"sweep/jobs/{grid.cells[0].name}.json"
    file.write_text(file.read_text().replace('"seconds"', '"seconds "'))
    del runs[failed]
    assert run_grid(grid).failed == []
    assert file.with_suffix(".damaged").exists()
    assert [one["outcome"] for one in read_attempts(grid, failed)] == ["failed", "done"]
    assert {"grid.json", "scores.json", "jobs", "attempts"} <= {
        path.name for path in (bucket / "sweep").iterdir()
    }
    assert not Path("gs:").exists()


def test_benchmarks_and_buckets_do_not_go_together(tmp_path):
    asked = Benchmarks("pope", "data/eval")
    grid = small_grid("gs://bucket/sweep", tests=(), benchmarks=asked)
    with pytest.raises(
        UserError, match="gs://bucket/sweep is in a bucket, but w32-v1-s0 has benchmarks or samples"
    ):
        check_place(grid)
    check_place(small_grid("gs://bucket/sweep"))
    check_place(small_grid(tmp_path / "out", tests=(), benchmarks=asked))


def test_status_from_the_command_line(tmp_path, capsys):
    file = write_config(tmp_path)
    execute("sweep", [str(file), "--status"])
    assert capsys.readouterr().out.endswith("4 cells: 4 waiting\n")
    assert not (tmp_path / "out").exists()
    for option in ("--dry-run", "--only=a", "--on=slurm"):
        with pytest.raises(UserError, match="does not go with --status"):
            execute("sweep", [str(file), "--status", option])
