"""Several processes of one run on this machine, which find each other by the JAX_ variables."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Processes:
    """The same command in some processes, with emulated devices each; those still alive at the end are killed.

    Args:
      command: a module and its arguments, as behind `python -m`; `{process}` becomes a process' number.
      folder: where their output goes; made here.
      devices: of each.
    """

    def __init__(self, command: Sequence[object], count: int, folder: Path, devices: int = 2):
        folder.mkdir(exist_ok=True)
        self.folder = folder
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        size = "--xla_force_host_platform_device_count"
        flags = re.sub(rf"{size}=\d+", f"{size}={devices}", os.environ["XLA_FLAGS"])
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", *(str(part).replace("{process}", str(number)) for part in command)],
                cwd=ROOT,
                env={
                    **os.environ,
                    "XLA_FLAGS": flags,
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(count),
                    "JAX_PROCESS_ID": str(number),
                },
                stdin=subprocess.PIPE,
                stdout=(folder / f"{number}.out").open("w"),
                stderr=(folder / f"{number}.err").open("w"),
            )
            for number in range(count)
        ]

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.said()
            assert all(p.poll() is None for p in self.processes), self.said()
            time.sleep(0.05)

    def statuses(self, seconds: float) -> list[int]:
        """How all processes ended, within so many seconds from now."""
        deadline = time.monotonic() + seconds
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a process is still there after {seconds} s: {self.said()}") from None

    def said(self, number: int | None = None) -> str:
        files = sorted(self.folder.glob("*.err")) if number is None else [self.folder / f"{number}.err"]
        return "\n".join(f"{file.name}: {file.read_text()[-3000:]}" for file in files)

    def printed(self, number: int) -> str:
        """What a process wrote to stdout, without the lines of XLA's collectives for CPUs."""
        lines = (self.folder / f"{number}.out").read_text().splitlines(keepends=True)
        return "".join(line for line in lines if "[Gloo]" not in line and "peer ranks" not in line)
