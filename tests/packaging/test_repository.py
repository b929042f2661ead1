"""What stands twice in the repository's own files says the same: versions of tools, targets, names of files."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.packaging.test_requirements import FILES, PROJECT, pins

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = {*re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def strings(node: object) -> list[str]:
    """All texts of a tree of lists and dicts."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []


def test_hooks_before_a_commit_have_the_versions_of_the_tests():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    asked = [Requirement(one) for hook in hooks for one in hook.get("additional_dependencies", [])]
    tests = pins(FILES["test"])
    compared = [one for one in asked if one.name in tests]
    assert len(compared) >= 5
    for one in compared:
        assert one.specifier == tests[one.name].specifier, one
    assert all(re.search(r"==", str(one.specifier)) for one in asked)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_are_there(workflow):
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    calls = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    called = {
        word
        for call in calls
        for line in re.findall(r"^make (.*)$", call, re.MULTILINE)
        for word in line.split()
    }
    matrix = [job.get("strategy", {}).get("matrix", {}).get("target", []) for job in jobs]
    called |= {word for text in strings(matrix) for word in text.split()}
    named = {word for word in called if re.fullmatch(r"[a-z-]+", word)}
    assert named and named <= TARGETS


def test_workflows_try_every_python_that_is_promised():
    promised = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == promised
    everywhere = f'VERSIONS="{" ".join(promised)}"'
    assert any(everywhere in step.get("run", "") for step in jobs["wheel"]["steps"])
    assert f"nightly: VERSIONS = {' '.join(promised)}\n" in MAKEFILE


def test_the_help_names_every_target_under_what_one_wants():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    groups = re.findall(r"^(\w+): .*\n((?:  make .*\n)+)", shown, re.MULTILINE)
    assert [name for name, _ in groups] == ["Start", "Study", "Test", "Write"]
    named = [line.split()[1] for _, lines in groups for line in lines.splitlines()]
    (phony,) = re.findall(r"^\.PHONY: (help(?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert sorted(named) == sorted(set(phony.replace("\\\n", " ").split()) - {"help"})


def test_an_image_can_be_made_for_every_accelerator_that_has_a_file():
    dockerfile = (ROOT / "Dockerfile").read_text()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name in ("cuda", "tpu"):
        assert f"requirements/{name}.txt" in dockerfile and name in FILES
    for copied in re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE):
        for file in copied.split():
            assert (ROOT / file).exists() and (file == "." or file.split("/")[0] in kept), file
    # The installation from a copy needs what pyproject.toml names.
    assert {"quecc_jax", "scaling", "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} <= kept
    assert all((ROOT / file).exists() for file in kept)
