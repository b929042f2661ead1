"""The files of exact versions and the bounds in pyproject.toml speak of the same packages."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FILES = {path.stem: path for path in sorted((ROOT / "requirements").glob("*.txt"))}
TOP = ROOT / "requirements.txt"
IN_TOP = {"tfds", "convert"}
"""Extras whose packages, or some of them, every environment of the tests has."""
APART = {"vllm.txt"}
"""Environments that this package is not in."""


def bounds(lines: list[str]) -> dict[str, Requirement]:
    """The requirements by their canonical names."""
    return {canonicalize_name(one.name): one for one in map(Requirement, lines)}


def pins(file: Path) -> dict[str, Requirement]:
    """The packages of a file of requirements, without those of the file that it includes."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return bounds([line for line in lines if line and not line.startswith("-r ")])


def version(requirement: Requirement) -> str:
    (one,) = requirement.specifier
    assert one.operator == "==", requirement
    return one.version


def assert_within(file: Path, wanted: dict[str, Requirement]) -> None:
    """Each version of the file lies in the bounds that are given for its package."""
    for name, pin in pins(file).items():
        if name in wanted:
            assert wanted[name].specifier.contains(version(pin)), f"{file.name}: {pin}, {wanted[name]}"


def no_deps(file: Path) -> bool:
    """Whether the file is installed without what its packages ask for, which an extra cannot say."""
    return "--no-deps" in file.read_text()


@pytest.mark.parametrize("file", [TOP, *FILES.values()], ids=lambda file: file.name)
def test_versions_are_exact_and_within_the_bounds(file):
    assert all(version(pin) for pin in pins(file).values())
    if file.name in APART:
        return
    for wanted in (PROJECT["dependencies"], *EXTRAS.values()):
        assert_within(file, bounds(wanted))


def test_the_pinned_requirements_are_the_dependencies_and_two_extras():
    optional = set().union(*(bounds(EXTRAS[name]) for name in IN_TOP))
    assert pins(TOP).keys() - optional == bounds(PROJECT["dependencies"]).keys()


@pytest.mark.parametrize("name", EXTRAS)
def test_an_extra_has_the_packages_of_its_file(name):
    wanted = bounds(EXTRAS[name])
    if name not in FILES:
        pinned = set().union(*(pins(file) for file in (TOP, *FILES.values())))
        assert wanted.keys() <= pinned
    elif no_deps(FILES[name]):
        assert wanted.keys() <= pins(FILES[name]).keys()
    else:
        assert wanted.keys() == pins(FILES[name]).keys()
        for package, requirement in wanted.items():
            pin = pins(FILES[name])[package]
            assert (pin.extras, pin.marker) == (requirement.extras, requirement.marker)


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_an_extra_or_says_why_not(name):
    assert name in EXTRAS or no_deps(FILES[name]) or name == "newest"


def test_the_newest_versions_are_of_all_that_runs_and_not_older():
    newest, tests = pins(FILES["newest"]), pins(FILES["test"])
    pinned = pins(TOP)
    assert pinned.keys() <= newest.keys() <= pinned.keys() | tests.keys()
    for package, pin in pinned.items():
        parts = [[int(part) for part in version(one).split(".")] for one in (pin, newest[package])]
        assert parts[0] <= parts[1], package


def test_bounds_of_a_package_are_the_same_wherever_it_stands():
    found: dict[str, set[str]] = {}
    for lines in (PROJECT["dependencies"], *EXTRAS.values()):
        for name, requirement in bounds(lines).items():
            found.setdefault(name, set()).add(str(requirement.specifier))
    assert {name: specifiers for name, specifiers in found.items() if len(specifiers) > 1} == {}


def test_every_accelerator_has_the_tested_jax():
    jax = pins(TOP)["jax"]
    named = set(re.findall(r"jax\[\w+\]==([\w.]+)", TOP.read_text() + (ROOT / "README.md").read_text()))
    assert named | {version(pins(FILES[name])["jax"]) for name in ("tpu", "cuda")} == {version(jax)}
