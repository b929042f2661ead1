"""The order of steps and what becomes of them, with small programs in the place of the real commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quecc_jax.errors import UserError
from quecc_jax.experiments.reproduce import fetch, run, stamps
from quecc_jax.experiments.reproduce.downloads import Download, Remote
from quecc_jax.experiments.reproduce.run import How, run_steps
from quecc_jax.experiments.reproduce.stamps import set_aside, states_of
from quecc_jax.experiments.reproduce.steps import TASKS, Step

MAKE = """
import json, os, pathlib, sys
out, last, note = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with open(out.parent / "ran", "a") as file:
    file.write(out.name + "\\n")
if note == "fail":
    sys.exit(3)
if out.name == "eval":
    out.mkdir(exist_ok=True)
    (out / "results.json").write_text(json.dumps({
        "model": "m", "checkpoint": "c", "visual_tokens": 16, "weights": "run", "image_decoding": "original",
        "limit": None, "resamples": 1, "seed": 0, "tasks": json.loads(os.environ["TASKS"])}))
else:
    number = last if note != "preempted" else 1
    (out / f"checkpoints/{number}").mkdir(parents=True, exist_ok=True)
    (out / f"checkpoints/{number}/checksums.json").write_text(note)
    (out / "config.json").write_text("{}")
"""
SCORED = {
    "about": "a",
    "questions": 1,
    "units": 1,
    "unread": 0,
    "scorer": {"name": "s", "follows": "f", "others": []},
    "headline": "accuracy",
    "metrics": {"accuracy": {"value": 50.0, "standard_error": 1.0}},
    "cut_questions": 0,
    "seconds": 1.0,
    "reuse": {},
}


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """Runs the steps in a directory whose one download lies there; `notes` say what programs do."""
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    (root / "data/rows.json").write_text("rows")
    (root / "data/covers").mkdir()
    (root / "data/covers/1.jpg").write_text("a cover")
    (root / "runs").mkdir()
    monkeypatch.setattr(
        run,
        "command",
        lambda step, by: [
            *by,
            sys.executable,
            "-c",
            MAKE,
            str(root / step.out),
            str(step.last),
            step.command[0],
        ],
    )
    monkeypatch.setenv("TASKS", json.dumps(dict.fromkeys(TASKS, SCORED)))
    return root


def steps(**changes) -> tuple[Step, ...]:
    """A download, what a person brings, both stages and the benchmarks; changes are fields by step."""
    rows = Download("rows", "rows", (Remote("data/rows.json", "x"),), ("data/rows.json",))
    covers = Download("covers", "covers", (), ("data/covers/",), note="take them from the shelf")
    every = (
        Step("rows", "rows", "download", (), "r", download=rows),
        Step("covers", "covers", "download", (), "c", download=covers),
        Step("stage1", "one", "train", ("rows",), "1", "runs/stage1", ("note",), last=4),
        Step("stage2", "two", "train", ("stage1", "covers"), "2", "runs/stage2", ("note",), last=5),
        Step("evaluate", "all", "evaluate", ("stage2",), "e", "runs/eval", ("note",)),
    )
    return tuple(step._replace(**changes.get(step.name, {})) for step in every)


def words(root: Path, every=None) -> list[str]:
    return [state.word for state in states_of(every or steps(), root).values()]


def ran(root: Path) -> list[str]:
    file = root / "runs/ran"
    return file.read_text().split() if file.is_file() else []


def test_steps_run_in_order_once_each(kit, capfd):
    assert words(kit) == ["ready", "done", "waits", "waits", "waits"]
    run_steps(steps(), kit, How())
    assert words(kit) == ["done"] * 5 and ran(kit) == ["stage1", "stage2", "eval"]
    assert "== stage2: two" in capfd.readouterr().out
    run_steps(steps(), kit, How())
    assert len(ran(kit)) == 3
    stamp = json.loads((kit / "runs/steps/stage2.json").read_text())
    assert stamp["needs"].keys() == {"stage1", "covers"} and stamp["made"]


def test_a_failure_is_told_and_tried_again(kit):
    with pytest.raises(UserError, match=r"stage1 ended with status 3; .* the same command tries it again"):
        run_steps(steps(stage1={"command": ("fail",)}), kit, How())
    assert words(kit) == ["done", "done", "ready", "waits", "waits"]
    run_steps(steps(), kit, How())
    assert words(kit)[-1] == "done"


def test_a_run_that_ended_well_but_early_is_not_done(kit):
    """Training that is told to end saves and ends with status 0."""
    early = steps(stage2={"command": ("preempted",)})
    with pytest.raises(UserError, match=r"stage2 ended before all of .*runs/stage2 was made"):
        run_steps(early, kit, How())
    assert words(kit) == ["done", "done", "done", "ready", "waits"]
    run_steps(steps(), kit, How())
    assert words(kit)[-1] == "done" and ran(kit).count("stage2") == 2


def test_benchmarks_that_were_asked_in_part_are_not_done(kit, monkeypatch):
    monkeypatch.setenv("TASKS", json.dumps(dict.fromkeys(TASKS[:7], SCORED)))
    with pytest.raises(UserError, match="evaluate ended before all of"):
        run_steps(steps(), kit, How())


def test_an_end_whose_stamp_was_killed_is_not_run_again(kit):
    """As `launch.convert import` refuses what exists."""
    run_steps(steps()[:3], kit, How())
    file = kit / "runs/steps/stage1.json"
    stamps.write_stamp(kit, steps()[2], json.loads(file.read_text())["needs"], "", time.time())
    assert words(kit)[2:] == ["ready", "waits", "waits"]
    run_steps(steps(), kit, How())
    assert words(kit) == ["done"] * 5 and len(ran(kit)) == 3


def test_what_was_used_and_deleted_to_make_room_is_not_made_again(kit):
    run_steps(steps(), kit, How())
    shutil.rmtree(kit / "runs/stage1")
    shutil.rmtree(kit / "data")
    assert words(kit) == ["not needed"] * 3 + ["done"] * 2
    run_steps(steps(), kit, How())
    assert len(ran(kit)) == 3
    # Until something has to be made of it again.
    shutil.rmtree(kit / "runs/stage2")
    (kit / "runs/eval/results.json").unlink()
    assert words(kit) == ["to fetch", "by hand", "waits", "waits", "waits"]


@pytest.mark.parametrize(
    ("change", "stale", "why"),
    [
        ({"stage1": {"settings": "other"}}, "stage1", "its settings changed since it was begun"),
        ({"evaluate": {"settings": "other"}}, "evaluate", "its settings changed"),
        ("covers", "stage2", "what covers made changed"),
        ("rows", "rows", "data/rows.json is not the file that was here first"),
        ("stage1", "stage1", "runs/stage1 itself changed"),
        ("foreign", "stage1", "runs/stage1 is there, but nothing says that it was made so"),
    ],
)
def test_what_changed_is_told_by_name_and_made_anew_on_request(kit, change, stale, why):
    run_steps(steps(), kit, How())
    every = steps(**change) if isinstance(change, dict) else steps()
    if change == "covers":
        (kit / "data/covers/2.jpg").write_text("another")
    if change == "rows":
        (kit / "data/rows.json").write_text("ROWS")
    if change == "stage1":
        (kit / "runs/stage1/config.json").write_text('{"other": 1}')
    if change == "foreign":
        (kit / "runs/steps/stage1.json").unlink()
    before = ran(kit)
    with pytest.raises(UserError, match=f"{stale}: .*{why}.*--again {stale} puts it aside"):
        run_steps(every, kit, How())
    assert ran(kit) == before
    for step in stamps.following(stale, every):
        set_aside(step, kit)
    run_steps(every, kit, How())
    assert words(kit, every) == ["done"] * 5
    anew = {"rows": 3, "stage1": 3, "stage2": 2, "evaluate": 1}[stale]
    assert len(ran(kit)) == 3 + anew
    assert sorted(p.name for p in (kit / "aside").iterdir())[-1:] == (
        ["stage2-1"] if anew > 1 else ["evaluate-1"]
    )


def test_a_file_that_was_only_touched_is_the_same(kit):
    run_steps(steps(), kit, How())
    os.utime(kit / "data/rows.json", (1, 1))
    assert words(kit) == ["done"] * 5
    # As many bytes, but others.
    (kit / "data/rows.json").write_text("wors")
    assert words(kit)[0] == "stale"


def test_a_run_that_had_saved_nothing_may_begin_otherwise(kit):
    with pytest.raises(UserError, match="stage1 ended with status 3"):
        run_steps(steps(stage1={"command": ("fail",)}), kit, How())
    other = steps(stage1={"settings": "other"})
    assert words(kit, other)[2] == "ready"
    run_steps(other, kit, How())
    assert words(kit, other) == ["done"] * 5


def test_what_has_no_address_is_left_to_a_person_and_the_rest_is_fetched(kit, tmp_path):
    (kit / "data/rows.json").unlink()
    there = tmp_path / "there.json"
    there.write_text("more")
    by_hand = Download(
        "rows", "rows", (Remote("data/rows.json", "", how="ask for {path}"),), ("data/rows.json",)
    )
    more = Download("more", "more", (Remote("data/more.json", str(there)),), ("data/more.json",))
    every = (steps(rows={"download": by_hand})[0], Step("more", "more", "download", (), "m", download=more))
    with pytest.raises(UserError, match=r"files are missing: rows \(1 of 1 files\); "):
        run_steps(every, kit, How(True))
    assert words(kit, every) == ["to fetch", "done"]


def test_what_is_missing_is_named_at_the_end_and_all_else_is_done(kit):
    (kit / "data/covers/1.jpg").unlink()
    with pytest.raises(UserError, match=r"files are missing: covers \(by hand\); .*--download"):
        run_steps(steps(), kit, How())
    assert words(kit) == ["done", "by hand", "done", "waits", "waits"]
    (kit / "data/rows.json").unlink()
    set_aside(steps()[2], kit)
    assert words(kit)[:2] == ["to fetch", "by hand"]
    with pytest.raises(UserError, match=r"files are missing: rows \(1 of 1 files\), covers \(by hand\)"):
        run_steps(steps(), kit, How())


def test_a_fetched_file_is_remembered_by_what_it_was_first(kit, tmp_path):
    run_steps(steps()[:1], kit, How())
    (kit / "data/rows.json").unlink()
    (tmp_path / "mirror/rows").mkdir(parents=True)
    (tmp_path / "mirror/rows/rows.json").write_text("others")
    how = How(True, str(tmp_path / "mirror"))
    with pytest.raises(UserError, match=r"rows\.json is not the file that was here first: its SHA-256 was"):
        run_steps(steps()[:1], kit, how)
    (kit / "data/rows.json").unlink()
    (tmp_path / "mirror/rows/rows.json").write_text("rows")
    run_steps(steps()[:1], kit, how)
    assert words(kit)[0] == "done"


def test_an_archive_may_go_once_it_is_unpacked(kit, tmp_path):
    from tests.experiments.reproduce.test_fetch import archive

    packed = archive(kit, {"in/1.jpg": b"1"})
    images = Download("images", "images", (packed,), ("out/in/",), (("second", "out/in"),))
    every = (Step("images", "images", "download", (), "i", download=images),)
    run_steps(every, kit, How())
    assert (kit / "second/1.jpg").read_bytes() == b"1"
    (kit / "a.zip").unlink()
    assert words(kit, every) == ["done"]
    # What it made is gone too: it is needed again.
    (kit / "out/in/1.jpg").unlink()
    assert words(kit, every) == ["to fetch"]
    other = images._replace(makes=("out/elsewhere/",))
    archive(kit, {"in/1.jpg": b"1"})
    set_aside(every[0], kit)
    with pytest.raises(
        UserError, match=r"images is unpacked, but out/elsewhere/ is not in .*laid out otherwise"
    ):
        run_steps((every[0]._replace(download=other),), kit, How())


def test_a_prefix_that_is_no_program_is_one_sentence(kit):
    with pytest.raises(UserError, match=r"srunn cannot be started \(No such file or directory\); see --by"):
        run_steps(steps(), kit, How(by=("srunn",)))


WAIT = """
import pathlib, signal, sys, time
out = pathlib.Path(sys.argv[1])
def end(number, frame):
    (out.parent / "told").write_text(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
(out.parent / "begun").touch()
time.sleep(60)
"""
KIT = """
import sys
from pathlib import Path
from quecc_jax.errors import program
from quecc_jax.experiments.reproduce import run
from tests.experiments.reproduce.test_run import WAIT, steps
root = Path(sys.argv[1])
run.command = lambda step, by: [sys.executable, "-c", WAIT, str(root / step.out)]
program(lambda: run.run_steps(steps(), root, run.How()))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_handed_on_once_and_says_what_goes_on(kit, number, status):
    process = subprocess.Popen(
        [sys.executable, "-c", KIT, str(kit)], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    )
    while not (kit / "runs/begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == status, err
    assert (kit / "runs/told").read_text() == number.name
    assert f"stage1 has ended on {number.name}; the same command goes on" in err and "Traceback" not in err
    assert words(kit)[2] == "ready"


def test_damaged_stamps_are_named(kit):
    run_steps(steps(), kit, How())
    file = kit / "runs/steps/stage1.json"
    file.write_text(file.read_text().replace('"step": "stage1"', '"step": "stage2"'))
    with pytest.raises(UserError, match=r"steps/stage1\.json is damaged.*delete it and what stage1 made"):
        words(kit)


def test_a_checksum_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert fetch.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
