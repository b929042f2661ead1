"""The whole kit on stand-ins: fetched over HTTP, killed, interrupted, gone on with, and its verdict."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quecc_jax.checksums import check_files
from quecc_jax.run_lock import run_lock
from quecc_jax.train.logs.records import read_records
from tests.experiments.reproduce.server import served
from tests.experiments.reproduce.standins import make

REPOSITORY = Path(__file__).parents[3]


class Kit:
    """Calls the command in a directory of its own."""

    def __init__(self, root: Path, address: str):
        self.root, self.address = root, address

    def argv(self, *more: str) -> list[str]:
        program = [sys.executable, "-m", "launch.reproduce", "--rehearsal", "--root", str(self.root)]
        return [*program, "--mirror", self.address, *more]

    def call(self, *more: str, status: int = 0) -> str:
        """What it printed, on both streams."""
        ran = subprocess.run(
            self.argv(*more),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            env=self.environment(),
            timeout=1800,
        )
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    def start(self, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.argv(*more),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment(),
        )

    @staticmethod
    def environment() -> dict[str, str]:
        """One device: eight on two cores would take their turns."""
        flags = [one for one in os.environ["XLA_FLAGS"].split() if "device_count" not in one]
        return {**os.environ, "XLA_FLAGS": " ".join(flags)}

    def states(self) -> dict[str, str]:
        lines = self.call().splitlines()
        words = [line.split(None, 2) for line in lines if line[:2].strip().isdigit()]
        return {name: rest.split("  ")[0].strip() for _, name, rest in words}


def until(process: "subprocess.Popen[str]", holds) -> None:
    """Waits, while a process goes on."""
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


def logged(run: Path) -> int:
    """The last step in a run's log."""
    with contextlib.suppress(Exception):
        return int(max(record["step"] for record in read_records(run)))
    return 0


@pytest.mark.slow
def test_from_public_files_to_a_verdict(tmp_path):
    """Real but for what is fetched, the model's size and the devices; a minute or two."""
    make(tmp_path / "mirror")
    root = tmp_path / "root"
    with served(tmp_path / "mirror") as place:
        kit = Kit(root, place.address)
        states = kit.states()
        assert (
            states["vicuna"] == "to fetch" and states["ocr-vqa"] == "by hand" and states["stage1"] == "waits"
        )

        # One archive loses its connection, and the covers are missing: all that can be done is done.
        place.cut = [100]
        began = kit.start("--run", "--download")
        run = root / "runs/v16-small"
        until(began, lambda: logged(run / "stage1") >= 2)
        began.kill()
        began.wait()
        assert len({path for path, _ in place.asked}) == len([p for p in place.asked if p[1] == 0])
        assert any(begin for _, begin in place.asked)

        # Killed, the kit leaves the stage to end by itself; until then another says who has it.
        told = kit.call("--run", "--download", status=1)
        assert "stage1 is in use by process" in told or "files are missing" in told
        deadline = time.monotonic() + 900
        while not (run / "stage1/checkpoints/4/checksums.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        told = kit.call("--run", "--download", status=1)
        assert "files are missing: ocr-vqa (by hand)" in told and "Traceback" not in told
        states = kit.states()
        assert states["stage1"] == "done" and states["stage2"] == "waits"
        assert (logged(run / "stage1"), (root / "eval/gqa/data/images").is_symlink()) == (4, True)

        # What a person brings; then Ctrl-C in the middle of stage 2.
        (root / "data/ocr_vqa").mkdir()
        shutil.copytree(tmp_path / "mirror/ocr-vqa", root / "data/ocr_vqa/images")
        began = kit.start("--run", "--download")
        until(began, lambda: logged(run / "stage2") >= 1)
        began.send_signal(signal.SIGINT)
        out = began.communicate(timeout=900)[0]
        assert began.returncode == 130 and "the same command goes on" in out and "Traceback" not in out

        with run_lock(str(root)):
            assert f"{root} is in use by process {os.getpid()}" in kit.call("--run", status=1)

        told = kit.call("--run", "--download")
        assert "stage1" not in [
            line.split()[1].strip(":") for line in told.splitlines() if line.startswith("==")
        ]
        assert set(kit.states().values()) == {"done"}
    assert logged(run / "stage2") == 4
    check_files(run / "stage2/checkpoints/4", "", "4")
    verdict = json.loads((run / "eval/verdict.json").read_text())
    words = {cell["task"]: cell["verdict"] for cell in verdict["cells"]}
    assert verdict["rehearsal"] and list(words.values())[-2:] == ["to upload", "to upload"]
    assert {*words.values()} <= {"below", "above", "within", "to upload"}
    results = json.loads((run / "eval/results.json").read_text())
    for cell in verdict["cells"][:6]:
        task = results["tasks"][cell["task"]]
        assert cell["ours"] == task["metrics"][task["headline"]]["value"]
    assert "its scores mean nothing" in told

    # Scores of the servers, then a model that other weights began: everything that follows is made anew, and told.
    told = kit.call("--score", "vqav2=74.6", "vizwiz=10")
    assert "| within |" in told.splitlines()[4] or "within" in told
    cells = {c["task"]: c["verdict"] for c in json.loads((run / "eval/verdict.json").read_text())["cells"]}
    assert (cells["vqav2"], cells["vizwiz"]) == ("within", "below")
    told = kit.call("--stage1-settings=--optimizer.learning-rate 1e-4", "--run", status=1)
    assert "stage1: its settings changed since it was begun; --again stage1" in told
    kit.call("--again", "evaluate")
    assert kit.states()["evaluate"] == "ready" and (root / "aside/evaluate-1/results.json").is_file()
