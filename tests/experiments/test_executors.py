"""A grid over real worker processes: order, isolation of failures, resumption."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quecc_jax.errors import UserError
from quecc_jax.experiments.display import Display
from quecc_jax.experiments.grid import Grid, Step, jobs
from quecc_jax.experiments.runner import run_grid
from quecc_jax.experiments.store import write_progress
from quecc_jax.experiments.worker import cores
from tests.small_disk import small_disk


def job(name, *needs, does="note", cost=1.0):
    return Step(name, f"tests.experiments.fake_jobs:{does}", needs, cost)


def run(steps, out):
    outcome = run_grid(Grid("fake", str(out), (), tuple(steps)), parallel=True)
    assert outcome.elsewhere == []
    return outcome.failed, outcome.skipped


def log(out):
    records = [json.loads(line) for line in (out / "log").read_text().splitlines()]
    return {record["name"]: record for record in records}, [record["name"] for record in records]


def test_order_failure_and_resumption(tmp_path, capfd):
    """Data, then two branches: one fails and takes its descendants with it, the other is finished."""
    steps = [
        job("late", "left", "right"),
        job("data", cost=0.1),
        job("left", "data", cost=5.0),
        job("right", "data", does="fail", cost=3.0),
        job("later", "late"),
        job("free", "left"),
    ]
    before = dict(os.environ)
    failed, skipped = run(steps, tmp_path)
    assert failed == ["right"] and sorted(skipped) == ["late", "later"]
    assert os.environ == before
    records, names = log(tmp_path)
    assert sorted(names) == ["data", "free", "left"]
    assert records["data"]["ended"] <= records["left"]["began"]
    assert records["left"]["ended"] <= records["free"]["began"]
    folder = tmp_path / "jobs"
    assert sorted(path.name for path in folder.iterdir()) == [
        "data.json",
        "free.json",
        "left.json",
        "right.error",
    ]
    assert "ValueError: the disk is made of cheese" in (folder / "right.error").read_text()
    result = json.loads((folder / "left.json").read_text())
    assert result["result"] == {"progress": {"share": 0.25, "note": "a quarter"}}
    assert 0.1 <= result["seconds"] < 60
    shown = capfd.readouterr().err
    assert "FAILED right: ValueError: the disk is made of cheese (" in shown
    assert "done free (4/6;" in shown or "done free (3/6;" in shown

    for record in records.values():
        assert "--xla_cpu_multi_thread_eigen=false" in record["XLA_FLAGS"]
        assert record["JAX_PLATFORMS"] == "cpu"
        if record["cores"]:
            assert len(record["cores"]) == 1 and record["cores"][0] in cores()

    (tmp_path / "repaired").touch()
    assert run(steps, tmp_path) == ([], [])
    records, names = log(tmp_path)
    assert sorted(names[3:]) == ["late", "later", "right"]
    assert records["right"]["ended"] <= records["late"]["began"] <= records["later"]["began"]
    assert not (folder / "right.error").exists()

    assert run(steps, tmp_path) == ([], [])
    assert log(tmp_path)[1] == names


def test_the_display_on_a_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "jobs").mkdir()
    with Display({"done": 1.0, "half": 2.0, "new": 1.0}, {"done"}, tmp_path / "jobs") as display:
        display.update([])
        write_progress(Grid("fake", str(tmp_path), ()), "half", 0.5, "loss 1.25")
        display.update(["half", "new"])
        display.progress.refresh()
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)
        display.finish("half", None)
        display.update(["new"])
    assert re.search(r"all .* 50% .* spent, about .* left", shown)
    assert re.search(r"half .* 50% loss 1\.25", shown) and re.search(r"new .* 0% starting", shown)
    assert "done half (2/3; 0:0" in capfd.readouterr().err


def test_jobs_stand_behind_what_they_need_and_circles_are_told(tmp_path):
    def grid(*steps):
        return Grid("fake", str(tmp_path), (), steps)

    ordered = jobs(grid(job("c", "b", "a"), job("b", "a"), job("a")))
    assert [one.name for one in ordered] == ["a", "b", "c"]
    for steps, sentence in (
        ((job("a"), job("a")), "two jobs of the grid are called 'a'"),
        ((job("a", "b"), job("b", "a")), "a needs b, which is no job or needs it too"),
        ((job("a", "nobody"),), "a needs nobody"),
    ):
        with pytest.raises(UserError, match=sentence):
            jobs(grid(*steps))


def test_a_killed_worker_is_told(tmp_path):
    with pytest.raises(UserError, match="a worker process was killed"):
        run([job("victim", does="die")], tmp_path)
    assert not (tmp_path / "jobs" / "victim.json").exists()


def test_a_full_disk_ends_the_grid_and_with_space_it_goes_on(tmp_path, capfd):
    with small_disk(tmp_path / "disk", 100) as disk:
        out = disk / "out"
        steps = [job("first"), job("large", "first", does="fill_disk"), job("last", "large")]
        with pytest.raises(
            UserError, match=f"^{out}: No space left on device; make room there and start the"
        ):
            run(steps, out)
        assert "Traceback" not in capfd.readouterr().err
        assert sorted(path.name for path in (out / "jobs").glob("*.json")) == ["first.json"]
        for ballast in out.glob("ballast-*"):
            ballast.unlink()
        (out / "repaired").touch()
        assert run(steps, out) == ([], [])
        assert len(list((out / "jobs").glob("*.json"))) == 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, how):
    """Interrupted or killed, a run leaves no process that would write beside the next one."""
    parent = subprocess.Popen([sys.executable, "-c", LINGER, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        await_that((tmp_path / "pid").is_file)
        worker = int((tmp_path / "pid").read_text())
        parent.send_signal(how)
        assert parent.wait(timeout=20) != 0
    finally:
        parent.kill()
        parent.wait()
    await_that(lambda: not alive(worker))


LINGER = """
import signal, sys
from quecc_jax.experiments.grid import Grid, Step
from quecc_jax.experiments.runner import run_grid
if __name__ == "__main__":
    # What a shell starts in the background ignores the signal, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps = (Step("long", "tests.experiments.fake_jobs:linger"),)
    run_grid(Grid("fake", sys.argv[1], (), steps), parallel=True)
"""


def await_that(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    # An orphan that nobody has collected yet has ended all the same.
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
