"""`launch.prepare_data` as a command: several processes, a kill in the middle, and the way back."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from quecc_jax.commands.cli import execute
from quecc_jax.data.sources.array_record import open_prepared
from tests.data.photos import ROWS, photo, write_llava

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
    whole = run("--out", out, "--verify")
    assert whole.returncode == 0 and "2 shards are whole" in whole.stdout


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
