"""Builds what is published: the source distribution and, from that, the wheel."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build_distributions(out: Path, isolated: bool) -> tuple[Path, Path]:
    """Builds from a copy, for a build leaves folders behind, and has twine check both.

    The copy has all packages, so that one which is not to be published would be seen in the wheel.

    Args:
      out: an empty directory.
      isolated: in an environment of its own, as pip does, into which the newest setuptools is installed.

    Returns:
      The files of the source distribution and of the wheel.

    Raises:
      subprocess.CalledProcessError: with what the tools said.
    """
    source, built = out / "source", out / "built"
    ignore = shutil.ignore_patterns("__pycache__", "golden", "real", "v0_1")
    for folder in ("quecc_jax", "scaling", "launch", "configs", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"):
        shutil.copy(ROOT / file, source)
    how = [] if isolated else ["--no-isolation"]
    _call(sys.executable, "-m", "build", *how, "--outdir", str(built), str(source))
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    _call(sys.executable, "-m", "twine", "--no-color", "check", "--strict", str(sdist), str(wheel))
    return sdist, wheel


def _call(*command: str) -> None:
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()
