"""What `pip install` brings: the library, the scaling law and the program `quecc`; no scripts, configs or tests."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from quecc_jax.commands.cli import COMMANDS
from tests.packaging.build import build_distributions

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("quecc_jax", "scaling")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution and the wheel, each unpacked. `make wheel-check` builds them as pip would."""
    root = tmp_path_factory.mktemp("wheel")
    sdist, wheel = build_distributions(root, isolated=False)
    with tarfile.open(sdist) as archive:
        archive.extractall(root / "sdist", filter="data")
    zipfile.ZipFile(wheel).extractall(root / "unpacked")
    (source,) = (root / "sdist").iterdir()
    return source, root / "unpacked"


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    return built[1]


def test_both_hold_two_packages_whole_and_nothing_else(built):
    sdist, wheel = built
    assert {path.name.partition("-")[0] for path in wheel.iterdir()} == {*PACKAGES}
    assert {path.name for path in sdist.iterdir() if path.is_dir()} == {*PACKAGES, "quecc_jax.egg-info"}
    for package in PACKAGES:
        files = [p for p in (ROOT / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert files
        for file in files:
            assert (wheel / file.relative_to(ROOT)).is_file(), file
            assert (sdist / file.relative_to(ROOT)).is_file(), file


def test_the_version_is_the_same_wherever_it_stands(wheel):
    (folder,) = wheel.glob("*.dist-info")
    metadata = email.message_from_bytes((folder / "METADATA").read_bytes())
    assert metadata["Version"] == PROJECT["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
    released = re.findall(r"^## \[(\d[\w.]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == PROJECT["version"]


def test_its_program_runs_away_from_the_repository(wheel, tmp_path):
    assert PROJECT["scripts"] == {"quecc": "quecc_jax.commands.cli:quecc"}

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
