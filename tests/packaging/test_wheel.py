"""What `pip install` brings: the library, the scaling law and the program `quecc`; no scripts, configs or tests."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from quecc_jax.commands.cli import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, unpacked. It is built from a copy, for a build leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77")
    root = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "golden", "real", "v0_1")
    for folder in ("quecc_jax", "scaling", "launch", "configs", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, root / "source" / folder, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, root / "source")
    build = "from setuptools import build_meta; build_meta.build_wheel('../built')"
    subprocess.run([sys.executable, "-c", build], cwd=root / "source", check=True, capture_output=True)
    (file,) = (root / "built").glob("*.whl")
    zipfile.ZipFile(file).extractall(root / "unpacked")
    return root / "unpacked"


def test_it_holds_two_packages_whole_and_nothing_else(wheel):
    assert {path.name.partition("-")[0] for path in wheel.iterdir()} == {"quecc_jax", "scaling"}
    for package in ("quecc_jax", "scaling"):
        files = [p for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert files
        for file in files:
            assert (wheel / file.relative_to(ROOT)).is_file(), file


def test_its_program_runs_away_from_the_repository(wheel, tmp_path):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("scripts")
    assert scripts in (None, {"quecc": "quecc_jax.commands.cli:quecc"})

    def call(*arguments: str) -> subprocess.CompletedProcess:
        code = f"from quecc_jax.commands.cli import quecc; raise SystemExit(quecc({[*arguments]}))"
        environment = {**os.environ, "PYTHONPATH": str(wheel), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)

    listed = call("--help")
    assert listed.returncode == 0 and all(name in listed.stdout for name in COMMANDS)
    demo = call("demo", "--quick")
    assert (demo.returncode, demo.stdout) == (1, "")
    assert demo.stderr == "error: configs/demo.py is not here; run this in a clone of the repository\n"


def test_a_config_file_finds_its_neighbours_from_the_installed_program(wheel):
    code = "from quecc_jax.commands.cli import quecc; quecc(['sweep', 'configs/llava_sweep.py', '--dry-run'])"
    environment = {**os.environ, "PYTHONPATH": str(wheel), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0 and "35 cells" in done.stdout, done.stderr
