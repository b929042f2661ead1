"""Grain's worker processes beside the process that started them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

STREAM = """
import json, multiprocessing, sys, time
import grain
from quecc_jax.config import DataConfig
from quecc_jax.data.iterator import DataIterator

class Numbers:
    def __init__(self):
        self.add = lambda read: None

if __name__ == "__main__":
    batches = grain.MapDataset.range(1000).map(lambda number: (number, None))
    stream = DataIterator(batches, {}, 1000, DataConfig(workers=1))
    stream.tally = Numbers()
    next(stream)
    print(json.dumps([child.pid for child in multiprocessing.active_children()]), flush=True)
    time.sleep(600)
"""


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_end_with_a_process_that_is_killed_and_leave_ctrl_c_to_it(tmp_path):
    (tmp_path / "stream.py").write_text(STREAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "stream.py")], env=environment, stdout=-1, stderr=-1, text=True
    ) as process:
        try:
            assert process.stdout and process.stderr
            workers = json.loads(process.stdout.readline())
            os.kill(workers[0], signal.SIGINT)
            time.sleep(0.5)
            assert len(workers) == 1 and running(workers[0])
        finally:
            process.kill()
        deadline = time.monotonic() + 30
        while running(workers[0]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running(workers[0])
        assert "Traceback" not in process.stderr.read()
