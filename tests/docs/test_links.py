"""Every link, command, option and file that the documentation names is there. Links are read as GitHub reads them; the
site's own are checked by `make docs`."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import quecc_jax
from quecc_jax.commands.cli import COMMANDS
from quecc_jax.commands.options import Run, option_names, with_config
from quecc_jax.config import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "launch/*.md", "examples/*.md", "tests/**/README.md")
    for path in ROOT.glob(pattern)
    if "_build" not in path.parts
)
MADE = ("runs/", "weights/", "data/", "eval/")
"""What commands leave behind or what their users bring."""
FORMER = {"launch.plan", "launch.comparison"}
"""Names that commands once had, of which the changelog tells."""


@cache
def tokens(page: Path) -> list[Token]:
    """The page's tokens, those inside of lines and tables too."""
    parsed = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    return [token for outer in parsed for token in (outer, *(outer.children or ()))]


@cache
def anchors(page: Path) -> set[str]:
    """GitHub's names for the headings of a page."""
    seen: Counter[str] = Counter()
    found = set()
    every = tokens(page)
    for before, token in itertools.pairwise(every):
        if before.type == "heading_open":
            text = "".join(t.content for t in token.children or () if t.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
            seen[slug] += 1
    return found


def links(page: Path) -> Iterator[str]:
    for token in tokens(page):
        for name in ("href", "src"):
            if (target := token.attrGet(name)) is not None:
                yield str(target)


def code(page: Path) -> str:
    """Everything that is set as code, piece by piece."""
    kinds = ("code_inline", "code_block", "fence")
    return "\n".join(token.content for token in tokens(page) if token.type in kinds)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def lost_links(page: Path) -> list[str]:
    lost = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            lost.append(link)
    return lost


def lost_commands(text: str) -> list[str]:
    """Commands, modules and targets named in code that do not exist."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    lost = [
        f"make {one}"
        for one in re.findall(r"(?:^|&& |# )make ([a-z][a-z-]+)", text, re.M)
        if one not in targets
    ]
    for module in re.findall(
        r"\b(?:python3? -m |(?=launch\.[a-z]|benchmarks\.[a-z]))([a-z_]+(?:\.[a-z_0-9]+)*)", text
    ):
        if find_spec(module.partition(".")[0]) is None or find_spec(module) is None:
            lost.append(f"python -m {module}")
    lost += [f"quecc {one}" for one in re.findall(r"\bquecc ([a-z][a-z-]+)", text) if one not in COMMANDS]
    lost += [f"scaling {one}" for one in re.findall(r"\bscaling ([a-z]+)", text) if one not in COMMANDS]
    return lost


def lost_options(text: str) -> list[str]:
    """Options of the config tree that do not exist, numbers of a list's entries aside."""
    known = {one.lstrip("-") for one in option_names(Run, with_config(Run, RunConfig()))}
    groups = {one.partition(".")[0] for one in known if "." in one}
    named = re.findall(r"--([a-z]+\.[a-z0-9.-]*[a-z0-9])", text)
    return [one for one in named if one.partition(".")[0] in groups and not _known(one, known)]


def _known(option: str, known: set[str]) -> bool:
    return option in known or option.startswith(("data.sources.", "model.compressor."))


def lost_files(text: str) -> list[str]:
    """Files of this repository that are named and not there; patterns and places of the user's aside."""
    named = re.findall(r"(?<![\w./:<-])((?:[\w-]+/)+[\w.-]*\w\.(?:py|md|json|txt|sh|toml|css))\b(?!\*)", text)
    own = {path.name for path in ROOT.iterdir() if path.is_dir()} - {one.rstrip("/") for one in MADE}
    rooms = {path.name for path in (ROOT / "quecc_jax").iterdir() if path.is_dir()}
    lost = []
    for file in named:
        places = [
            base for base, names in ((ROOT, own), (ROOT / "quecc_jax", rooms)) if file.split("/")[0] in names
        ]
        theirs = file.startswith(MADE) or "NAME" in file
        if places and not theirs and not any((base / file).exists() for base in places):
            lost.append(file)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    assert lost_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page):
    former = {f"python -m {module}" for module in FORMER} if page.name == "CHANGELOG.md" else set()
    assert [command for command in lost_commands(code(page)) if command not in former] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_exist(page):
    assert lost_options(code(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_are_there(page):
    assert lost_files(code(page)) == []


def test_the_reference_lists_every_public_name():
    listed = re.findall(r"~quecc_jax\.[\w.]+\.(\w+)$", (ROOT / "docs/api/index.md").read_text(), re.M)
    assert sorted(listed) == sorted(quecc_jax.__all__)


def test_what_is_lost_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A *b*: `c`\n# Twice\n# Twice\n[x](page.md#a-b-c) [y](#twice-1) [z](#nowhere) ![p](lost.png)\n"
    )
    assert lost_links(page) == ["#nowhere", "lost.png"]
    text = "make tets\npython -m launch.trian; make room; quecc fly; launch.train; scaling fit; scaling fti"
    assert lost_commands(text) == ["make tets", "python -m launch.trian", "quecc fly", "scaling fti"]
    assert lost_options("--train.steps 5 --train.stesp --data.sources.0.path a --other.thing") == [
        "train.stesp"
    ]
    assert lost_files("`configs/lost.py` train/lost.py data/mix.json train/loop.py gs://a/tests/b.py") == [
        "configs/lost.py",
        "train/lost.py",
    ]
