"""`launch.prepare_data` as a command: several processes, a kill in the middle, and the way back."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.data.sources.array_record import open_prepared
from quecc_jax.errors import UserError, run_cli
from quecc_jax.train.checkpoint import save_params
from tests import tiny
from tests.data.photos import ROWS, photo, write_llava
from tests.small_disk import fill, small_disk

COMMAND = (sys.executable, "-m", "launch.prepare_data")


def run(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def main_with(*arguments):
    """The command in this process."""
    execute("prepare-data", [str(argument) for argument in arguments])


def test_prepares_verifies_and_refuses(tmp_path):
    path, _ = write_llava(tmp_path)
    out = tmp_path / "out"
    command = "--data", path, "--images", tmp_path, "--out", out, "--resize", 24, "--workers", 2
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert f"{out}: {ROWS} rows, 7 images" in done.stdout
    assert len(open_prepared(out).rows) == ROWS
    again = run(*command)
    assert again.returncode == 1 and again.stderr.splitlines()[-1].startswith("error: ")
    assert "prepared already" in again.stderr
    with pytest.raises(UserError, match=r"^--aspect goes with whole images, and .* holds resized ones"):
        main_with("--out", out, "--features", "--checkpoint", "R", "--aspect", "square")
    whole = run("--out", out, "--verify")
    assert whole.returncode == 0 and "2 shards are whole" in whole.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--workers -1", "--workers is -1; give at least 0"),
        ("--format tfds --workers -1", "--workers is -1; give at least 0"),
        ("--batch-size 0", "--batch-size is 0; give at least 1"),
        ("--resize -1 --quality 95", "--resize is -1; give at least 0"),
        ("--resize 24 --quality 101", "--quality is 101; give 1 to 100"),
        ("--shard-images 0", "--shard-images is 0; give at least 1"),
        ("--out {file}", "--out {file} cannot be written ({file} is not a folder)"),
        ("--out {file}/x --format tfds", "--out {file}/x cannot be written ({file} is not a folder)"),
        ("--data {empty}", "{empty} has no rows; give a file of conversations"),
        ("--data {empty} --format tfds", "{empty} has no rows; give a file of conversations"),
        ("--queries --checkpoint R", "--data is for preparing data, and --features and --queries read"),
        (
            "--data= --images x --features --checkpoint R",
            "--images is for preparing data, and --features and",
        ),
        (
            "--data= --features --resize 24 --checkpoint R",
            "--resize is for preparing data, and --features and",
        ),
        ("--data= --queries --aspect square --checkpoint R", "--aspect goes with --resize or --features"),
        ("--data= --features --encoder decoder --checkpoint R", "--encoder goes with --queries"),
        ("--data= --queries --layer 2 --checkpoint R", "--layer goes with --encoder early_exit"),
        ("--data= --queries", "--features and --queries need --checkpoint"),
        ("--data=", "--data must be given"),
        ("--checkpoint R", "--checkpoint goes with --features or --queries"),
        ("--batch-size 8", "--batch-size goes with --features or --queries"),
        ("--layer 2", "--layer goes with --queries"),
        ("--encode png", "--encode goes with --resize"),
        ("--quality 90", "--quality goes with --resize"),
        ("--aspect square", "--aspect goes with --resize"),
        ("--decoding original", "--decoding goes with --resize"),
        ("--resize 24 --encode raw --quality 90", "--quality is of --encode jpeg"),
        ("--format tfds --shard-images 2", "--shard-images goes with --format array_record"),
        ("--format tfds --merge", "--merge goes with --format array_record"),
        ("--shard 2/2", "--shard 2/2 is not I/N with I from 0 to N - 1"),
        ("--merge --shard 0/2", "--shard is for writing parts, and --merge joins them"),
        ("--data= --features --checkpoint R --shard 0/2", "--shard is for preparing data"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path, arguments, message):
    path, _ = write_llava(tmp_path)
    files = {"file": tmp_path / "text.png", "empty": tmp_path / "empty.json"}
    files["file"].write_text("not a folder")
    files["empty"].write_text("[]")
    before = {*tmp_path.rglob("*")}
    with pytest.raises(UserError, match=re.escape(message.format(**files))) as caught:
        main_with("--data", path, "--out", tmp_path / "out", *arguments.format(**files).split())
    assert "\n" not in str(caught.value) and {*tmp_path.rglob("*")} == before


@pytest.mark.parametrize("kind", ["array_record", "tfds"])
def test_a_full_disk_is_one_sentence_and_with_space_the_same_command_ends(tmp_path, capfd, kind):
    path, _ = write_llava(tmp_path)
    with small_disk(tmp_path / "disk", 400) as disk:
        command = "--data", path, "--images", tmp_path, "--out", disk / "out", "--format", kind
        ballast = fill(disk, leave=4)
        with pytest.raises(SystemExit) as stop:
            run_cli(lambda: main_with(*command))
        err = capfd.readouterr().err
        assert stop.value.code == 1 and "Traceback" not in err
        last = [line for line in err.splitlines() if "error: " in line]
        assert len(last) == 1 and "No space left on device; make room there and start the same" in last[0]
        ballast.unlink()
        main_with(*command)
        if kind == "array_record":
            assert len(open_prepared(disk / "out").rows) == ROWS


def test_parts_and_their_merging_from_the_command_line(tmp_path, capsys):
    path, _ = write_llava(tmp_path)
    command = (
        "--data",
        path,
        "--images",
        tmp_path,
        "--workers",
        1,
        "--shard-images",
        4,
        "--out",
        tmp_path / "out",
    )
    main_with(*command, "--shard", "1/2")
    assert "part 1/2, 1 shards" in capsys.readouterr().out
    merging = [part for part in command if part not in ("--workers", 1)]
    with pytest.raises(UserError, match=r"pictures-00000-of-00002\.array_record is missing"):
        main_with(*merging, "--merge")
    main_with(*command, "--shard", "0/2")
    main_with(*merging, "--merge")
    assert f"{ROWS} rows, 7 images" in capsys.readouterr().out
    assert len(open_prepared(tmp_path / "out").rows) == ROWS


@pytest.mark.slow
def test_a_killed_preparation_leaves_no_process_and_goes_on(tmp_path):
    """SIGKILL between two shards: the command's processes end, and the whole shards are kept."""
    for k in range(40):
        photo(k, 900, 700).save(tmp_path / f"{k}.png")
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    rows = [{"image": f"{'./' * (k // 40)}{k % 40}.png", "conversations": turns} for k in range(400)]
    path, out = tmp_path / "rows.json", tmp_path / "out"
    path.write_text(json.dumps(rows))
    command = [
        *COMMAND,
        "--data",
        str(path),
        "--images",
        str(tmp_path),
        "--out",
        str(out),
        "--resize",
        "24",
        "--workers",
        "2",
        "--shard-images",
        "20",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(out.glob(".pictures-*.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    kept = list(out.glob("pictures-*"))
    times = {file: file.stat().st_mtime_ns for file in kept}
    assert kept and not (out / "manifest.json").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _alive(process.pid)
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert {file: file.stat().st_mtime_ns for file in kept} == times
    assert len(open_prepared(out).images) == 400


def _alive(group: int) -> bool:
    """Whether a process group has processes left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_features_of_a_model_that_cuts_images_into_tiles_are_refused(tmp_path):
    """Its runs read the images themselves, and images have different numbers of tiles."""
    path, _ = write_llava(tmp_path)
    out, run_dir = tmp_path / "out", tmp_path / "run"
    main_with("--data", path, "--images", tmp_path, "--out", out, "--workers", 1)
    vision = dataclasses.replace(tiny.MODEL.vision, tiles=((1, 2), (2, 1)))
    config = dataclasses.replace(tiny.run(model={"vision": vision}), out=str(run_dir))
    save_params(config, {"vision": tiny.random_params(tiny.RUN)["vision"]})
    with pytest.raises(UserError, match="cuts images into tiles"):
        main_with("--out", out, "--features", "--checkpoint", run_dir)
    assert not list(out.glob("features*"))
