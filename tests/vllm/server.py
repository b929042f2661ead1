"""A `vllm serve` of its own environment."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-vllm" / "bin"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Log probabilities would be compiled for half a minute.
    "TORCH_COMPILE_DISABLE": "1",
}


class Server:
    """Serves a directory until the block ends.

    Args:
      model: the directory.
      log: where its output goes.
      options: further ones of `vllm serve`.
    """

    def __init__(self, model: Path, log: Path, *options: object):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        fixed = ("--host", "127.0.0.1", "--port", port, "--enable-prompt-embeds", "--enforce-eager")
        sizes = ("--dtype", "float32", "--max-model-len", 4096, "--kv-cache-memory-bytes", "64M")
        command = [BIN / "vllm", "serve", model, *fixed, *sizes, "--max-num-seqs", 8, *options]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                list(map(str, command)),
                env={**os.environ, **ENVIRONMENT},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Server":
        deadline = time.monotonic() + 400
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"vLLM did not start:\n{self.log.read_text()[-3000:]}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return self
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        # Its engine is a process of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values where it has these labels."""
        lines = httpx.get(f"{self.url}/metrics", trust_env=False).text.splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{name}{{", f"{name} ")) and all(label in line for label in wanted)
        )
