"""Installs the wheel as a stranger would: `python -m tests.packaging --versions 3.11 3.12`, or `make wheel-check`.

The source distribution and the wheel are built in an environment of their own and looked at by twine. For each
Python a fresh environment away from the repository gets the wheel, and with it what pip chooses today. There every
command says what it is, a tiny model is trained, continued, asked, scored and exported, and the law is fitted and
planned with. The first thing that goes wrong ends it with status 1.
"""

import concurrent.futures
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from quecc_jax.commands.cli import COMMANDS
from quecc_jax.xla_flags import FAST_COMPILE
from tests.packaging.build import ROOT, build_distributions

FILES = Path(__file__).parent / "stranger"
"""What the stranger has written: a preparation of data, a config, a program."""
DESCRIBED = ([], *([name] for name in COMMANDS), ["convert", "import"], ["convert", "export"])
"""What is asked for --help."""
TOLD = ("jax", "flax", "orbax-checkpoint", "grain", "transformers", "numpy", "scipy", "tyro")
"""Packages whose versions are printed."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Builds the wheel and uses it away from the repository."""

    versions: tuple[str, ...] = ("3.12",)
    """Versions of Python to use it on, where they are on PATH or pyenv's; where none is, the one that runs this."""
    pinned: bool = False
    """Install the versions of requirements.txt instead of those that pip chooses today."""


class Failed(Exception):
    """What was expected of a command, and what came of it."""


class Stranger:
    """Somebody with a fresh environment and an empty folder, away from the repository."""

    def __init__(self, interpreter: str, folder: Path):
        self.work = folder / "work"
        self.work.mkdir()
        self.programs = folder / "environment" / "bin"
        # XLA's flags are those of the installed release.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XLA_FLAGS"))}
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PLATFORMS": "cpu"}
        self.environment = {**kept, **compiled, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.call(interpreter, "-m", "venv", str(self.programs.parent))

    def call(self, program: str, *arguments: str, status: int = 0, says: str = "") -> str:
        """Calls a program of the environment, or one with a path.

        Returns:
          What it printed.

        Raises:
          Failed: it ended with another status, without saying what it should, or with a traceback.
        """
        path = program if os.sep in program else str(self.programs / program)
        started = time.monotonic()
        done = subprocess.run(
            [path, *arguments],
            cwd=self.work,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        called = " ".join([Path(program).name, *arguments])
        if done.returncode != status or says not in said or "Traceback" in said:
            raise Failed(f"{called}: status {done.returncode}, not {status} with {says!r}:\n{said}")
        print(f"  {time.monotonic() - started:5.1f} s  {called}", flush=True)
        return done.stdout

    def describe(self, command: list[str]) -> str:
        return self.call("quecc", *command, "--help", says=" ".join(["usage: quecc", *command]))


def install(stranger: Stranger, wheel: Path, pinned: bool) -> None:
    """Installs the wheel and what it asks for."""
    exact = ["--constraint", str(ROOT / "requirements.txt")] if pinned else []
    stranger.call("python", "-m", "pip", "install", "--quiet", *exact, str(wheel))
    stranger.call("python", "-m", "pip", "check")
    frozen = stranger.call("python", "-m", "pip", "freeze").splitlines()
    print(f"  with {', '.join(line for line in frozen if line.partition('==')[0] in TOLD)}")
    flags = f"from quecc_jax.xla_flags import with_flags; print(with_flags('', {FAST_COMPILE}))"
    stranger.environment["XLA_FLAGS"] = stranger.call("python", "-c", flags).strip()


def use(stranger: Stranger) -> None:
    """What a first day brings, and one thing that cannot work."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(stranger.describe, DESCRIBED))
    stranger.call("python", "-m", "scaling", "--help", says="usage: python -m scaling")
    missed = "configs/ comes with the repository, not with the installed package"
    stranger.call("quecc", "train", "configs/llava_7b_stage1.py", status=1, says=missed)

    for file in ("prepare.py", "config.py", "ask.py"):
        (stranger.work / file).write_text((FILES / file).read_text())
    stranger.call("python", "prepare.py")
    stranger.call("quecc", "inspect-data", "config.py", "--page", "data.html")
    stranger.call("quecc", "train", "config.py", says="run: step 4")
    stranger.call("quecc", "train", "config.py", "--train.steps", "6", says="run: step 6")
    question = ("--image", "images/0.png", "--question", "what color is the shape?", "--max-new-tokens", "4")
    stranger.call("quecc", "generate", "--checkpoint", "run", *question, "--explain", "where.png")
    stranger.call(
        "quecc",
        "evaluate",
        "--checkpoint",
        "run",
        "--data",
        "rows.json",
        "--images",
        "images",
        "--out",
        "scores",
    )
    stranger.call("quecc", "convert", "export", "--checkpoint", "run", "--only", "decoder", "--to", "export")
    stranger.call("python", "ask.py", says="V = 4")
    stranger.call(
        "python", "-m", "scaling", "fit", "--scores", "general", "--out", "law", says="law/fit.html"
    )
    budget = ("--ms", "60", "--chip", "h100", "--batch", "4")
    stranger.call("quecc", "plan", "--fit", "law", *budget, "--out", "plan", says="plan/plan.html")
    for made in ("data.html", "where.png", "scores/results.json", "export/config.json"):
        if not (stranger.work / made).is_file():
            raise Failed(f"{made} was not written")


def interpreters(versions: tuple[str, ...]) -> list[str]:
    """Those of the versions that are there, or the one that runs this where none is; says which are missing."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = []
    for version in versions:
        paths = [f"python{version}", *sorted(str(path) for path in pyenv.glob(f"{version}.*/bin/python"))]
        # pyenv's shims are on PATH without what they stand for.
        there = [path for path in map(shutil.which, paths) if path and _works(path)]
        found += there[:1]
        if not there:
            print(f"notice: there is no Python {version} here; the wheel is not tried on it", file=sys.stderr)
    return found or [sys.executable]


def _works(path: str) -> bool:
    return subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0


def main(options: Options) -> None:
    """Builds, installs and uses; prints each call and how long it took."""
    with tempfile.TemporaryDirectory(prefix="quecc_jax-wheel-") as name:
        root = Path(name)
        sdist, wheel = build_distributions(root, isolated=True)
        print(f"{sdist.name}, {wheel.name}: built, and twine finds nothing")
        for interpreter in interpreters(options.versions):
            print(interpreter)
            with tempfile.TemporaryDirectory(prefix="stranger-", dir=root) as folder:
                stranger = Stranger(interpreter, Path(folder).resolve())
                install(stranger, wheel, options.pinned)
                use(stranger)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except Failed as error:
        sys.exit(f"error: {error}")
