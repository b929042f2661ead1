"""The plan of the house, measured from its imports: which room may use which, and how large rooms may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TREES = ("quecc_jax", "scaling", "launch", "configs")

LEVELS = (
    {
        "errors",
        "json_text",
        "paths",
        "records",
        "checksums",
        "progress",
        "worker_process",
        "xla_flags",
        "pages",
    },
    {"compressor settings"},
    {"config"},
    {"flops", "sharding", "distributed", "groups", "run_lock"},
    {"data", "models"},
    {"train", "fingerprint"},
    {"aot", "convert", "generate"},
    {"load"},
    {"evaluate"},
    {"serve", "experiments"},
    {"commands"},
)
"""Rooms of `quecc_jax`, from the ground up. A room uses its own level and those below."""

OUTSIDE = {
    "quecc_jax": set(),
    "scaling": {
        "errors",
        "json_text",
        "paths",
        "records",
        "pages",
        "config",
        "compressor settings",
        "flops",
        "memory",
        "aot",
    },
    "configs": {"config", "experiments"},
    "launch": {"commands", "errors"},
}
"""Rooms of the library that the other trees use."""

ENTRIES = {"quecc_jax", "scaling.__main__"}
"""The public API, and the program that calls two commands."""

REGISTRIES = {
    "quecc_jax/models/compressors",
    "quecc_jax/evaluate/tasks",
    "quecc_jax/convert/formats",
    "quecc_jax/commands",
    "configs",
    "launch",
}
"""Folders with one file for each thing of a kind; they grow with the field."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    files = [file for tree in TREES for file in sorted((ROOT / tree).rglob("*.py"))]
    named = {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in named.items()}


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the product: at its top, in its functions, and for type checkers alone."""

    def named(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules() else node.module for name in whole)

    found = {}
    for name, file in modules().items():
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        found[name] = {other for node in nodes for other in named(node) if other in modules()} - {name}
    return found


def room(module: str) -> str:
    """The room of a module of the library."""
    parts = module.split(".")[1:]
    if parts[:2] == ["models", "compressors"] and parts[-1].endswith("_config"):
        return "compressor settings"
    return parts[0] if parts else "quecc_jax"


def level(module: str) -> int:
    found = [number for number, rooms in enumerate(LEVELS) if room(module) in rooms]
    assert len(found) == 1, f"{module} is in no room of LEVELS, or in several; give its room one level"
    return found[0]


def test_rooms_use_their_own_level_and_those_below():
    wrong = []
    for module, others in imports().items():
        tree = module.split(".")[0]
        for other in others:
            there = other.split(".")[0]
            if module in ENTRIES:
                continue
            if tree == there == "quecc_jax":
                fine = level(module) >= level(other)
            elif there == "quecc_jax":
                fine = room(other) in OUTSIDE[tree]
            else:
                fine = tree == there or (there == "scaling" and room(module) == "commands")
            if not fine:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_settings_and_programs_import_no_jax_and_nothing_above_them():
    """Nor does the package itself, whose settings are there without its models."""
    light = [m for m in modules() if m.startswith(("quecc_jax.config", "launch", "quecc_jax.commands.cli"))]
    heavy = {
        "jax",
        "flax",
        "numpy",
        "scipy",
        "matplotlib",
        "transformers",
        "quecc_jax.flops",
        "quecc_jax.data",
    }
    code = (
        f"import importlib, sys, quecc_jax\nquecc_jax.RunConfig()\n"
        f"for name in {light!r}: importlib.import_module(name)\nprint(sorted({heavy!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_holds_at_most_fifteen_files():
    sizes: dict[str, int] = {}
    for file in modules().values():
        folder = str(file.parent.relative_to(ROOT))
        if folder not in REGISTRIES and file.name != "__init__.py":
            sizes[folder] = sizes.get(folder, 0) + 1
    assert {folder: size for folder, size in sizes.items() if size > 15} == {}


def test_a_file_has_one_subject():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in modules().values()}
    assert {file: length for file, length in lengths.items() if length > 420} == {}
