"""How Sphinx makes the site: `make docs`. Everything that it needs is here; without a network nothing changes."""

import builtins
import dataclasses
import os
import re
import sys
import tomllib
import typing
from pathlib import Path
from typing import Any

import flax.linen as nn
import jupytext
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]
from opening import is_notebook, opened  # noqa: E402  (beside this file)

from quecc_jax.xla_flags import FAST_COMPILE, LESS_OPTIMIZED, with_flags  # noqa: E402

# Notebooks run in processes of their own.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What a notebook compiles it runs a few times; without any optimisation a real language model is too slow all the same.
flags = (*LESS_OPTIMIZED, *FAST_COMPILE[1:])
os.environ["XLA_FLAGS"] = with_flags(os.environ.get("XLA_FLAGS", ""), flags)
# tqdm misses the widgets of a browser, which a page has not.
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
# jaxtyping then shows `Float[Array, 'B S']` without its module.
typing.GENERATING_DOCUMENTATION = "quecc_jax"  # type: ignore[attr-defined]

# OWNER/NAME at GitHub, from which notebooks are opened at Colab and Kaggle; see opening.py.
repository = ""

project = "quecc_jax"
author = "The quecc_jax authors"
copyright = "the quecc_jax authors, Apache-2.0"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
nitpicky = True
# A name of ours that leads nowhere is a mistake. Names of others lead somewhere where an inventory has them; which
# ones depends on the releases that the network shows, and must not decide whether the site can be made.
nitpick_ignore_regex = [
    ("py:.*", r"(?!(quecc_jax|scaling)\.).*"),
    # Type variables, which no page documents, and words in single backticks.
    ("py:class", r".*\.([A-Z]|Leaf|Pixels)"),
    ("py:obj", r".*"),
]

# Pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"
html_theme = "sphinx_book_theme"
html_title = "quecc_jax"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

# Notebooks: their outputs are made here, once for each version of their cells.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build/notebooks")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

# Docstrings
highlight_language = "none"
# Words in single backticks link to the name of that module, and are code where there is none.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True, "special-members": "__call__"}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

# The network's inventory, or ours: see inventories/make.py.
OTHERS = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "jax": "https://docs.jax.dev/en/latest/",
    "flax": "https://flax-linen.readthedocs.io/en/latest/",
    "optax": "https://optax.readthedocs.io/en/latest/",
    "orbax": "https://orbax.readthedocs.io/en/latest/",
    "grain": "https://google-grain.readthedocs.io/en/latest/",
}
intersphinx_mapping = {name: (url, (None, f"inventories/{name}.inv")) for name, url in OTHERS.items()}
intersphinx_timeout = 5
intersphinx_disabled_reftypes = ["std:*"]


def read_docstring(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Makes reStructuredText of our docstrings: a block that is set in after a blank line stands as it is, `name`s may
    have letters behind them, and a star is a star. Python's own words about fields without a docstring go."""
    if lines and re.fullmatch(r"Alias for field number \d+", lines[0]):
        lines.clear()
    out: list[str] = []
    before, literal = "", False
    for i, line in enumerate(lines):
        if line.strip():
            if line.startswith("    ") and before and not before.startswith(" ") and not lines[i - 1].strip():
                out += ["::", ""]
                literal = True
            elif not line.startswith(" "):
                literal = False
            before = line
        out.append(line if literal else _plain(line))
    # Napoleon takes the words before a colon in the first line of a field's docstring for its type: a comment stands
    # in front.
    lines[:] = ["..", "", *out] if out and what in ("attribute", "data", "property") else out


def _plain(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"(?<!^)(?<!^ {4})([*|])", r"\\\1", part) for part in parts[::2]]
    return re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", "".join(parts))


ELSEWHERE = {
    ROOT / "launch/gke.md": "gke.md",
    ROOT / "CONTRIBUTING.md": "project/contributing.md",
    ROOT / "SECURITY.md": "project/security.md",
    ROOT / "CHANGELOG.md": "project/changelog.md",
}
"""Files outside of docs/ that have a page here."""


def link_to_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Links that lead out of docs/, as they should on GitHub, lead to a page of the site where there is one."""
    folder = (HERE / name).parent

    def moved(link: re.Match[str]) -> str:
        page = ELSEWHERE.get((folder / link[1]).resolve())
        return link[0] if page is None else f"]({os.path.relpath(HERE / page, folder)}"

    source[0] = re.sub(r"\]\(([\w./-]+\.md)", moved, source[0])


def open_notebook(app: Sphinx, name: str, source: list[str]) -> None:
    """Badges and the install cell go into a notebook's page, where the repository has a name."""
    if is_notebook(source[0]):
        source[0] = opened(source[0], Path(name).name, app.config.repository)


def write_notebooks(app: Sphinx, failure: Exception | None) -> None:
    """Writes every notebook beside its page, as Jupyter, Colab and Kaggle read it, without outputs."""
    if failure is not None or app.builder.format != "html":
        return
    for file in sorted((HERE / "notebooks").glob("*.md")):
        if is_notebook(text := file.read_text()):
            notebook = jupytext.reads(opened(text, file.stem, app.config.repository), "md:myst")
            jupytext.write(notebook, Path(app.outdir, "notebooks", f"{file.stem}.ipynb"))


def skip_member(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what every Flax module has."""
    if what != "class" or name not in ("parent", "name", "setup", "scope"):
        return None
    place = app.env.current_document
    owner: Any = sys.modules.get(place.autodoc_module)
    for part in place.autodoc_class.split("."):
        owner = getattr(owner, part, None)
    return True if isinstance(owner, type) and issubclass(owner, nn.Module) else None


def leave_out_fields(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None] | None:
    """A class of fields has no signature: its fields follow, each with its type, default and meaning."""
    if isinstance(thing, type) and (dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")):
        return "", None
    return None


PUBLIC = {
    "ndarray": "numpy.ndarray",
    "Array": "jax.Array",
    "jaxlib._jax.Array": "jax.Array",
    "jax.jaxlib._jax.Array": "jax.Array",
    "jaxlib._jax.Device": "jax.Device",
    "jax._src.mesh.Mesh": "jax.sharding.Mesh",
    "flax.linen.module.Module": "flax.linen.Module",
    "optax._src.base.GradientTransformation": "optax.GradientTransformation",
}
"""Where a name lives, or how annotations shorten it, and what its project's documentation calls it."""


class PublicNames(SphinxPostTransform):
    """Types of annotations under the names that they are documented by, Python's own taken for nobody's attribute."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        for node in self.document.findall(addnodes.pending_xref):
            target = node.get("reftarget", "")
            if node.get("refdomain") != "py":
                continue
            if target in dir(builtins) and node["reftype"] in ("class", "exc"):
                for scope in ("py:module", "py:class", "refspecific"):
                    node.attributes.pop(scope, None)
            elif target in PUBLIC and node["reftype"] == "class":
                node["reftarget"] = PUBLIC[target]


class DarkImages(SphinxPostTransform):
    """Shows NAME-dark.png in place of NAME.png in dark mode, where there is one."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        for image in list(self.document.findall(nodes.image)):
            path = Path(image["uri"])
            dark = str(path.with_name(f"{path.stem}-dark{path.suffix}"))
            if not (HERE / dark).exists() or image["uri"] not in self.env.images:
                continue
            self.env.images.add_file(self.env.docname, dark)
            other = image.deepcopy()
            other["uri"], other["candidates"] = dark, {"*": dark}
            image["classes"] = [*image["classes"], "only-light"]
            other["classes"] = [*other["classes"], "only-dark"]
            image.parent.insert(image.parent.index(image) + 1, other)


def setup(app: Sphinx) -> None:
    app.add_config_value("repository", "", "env", str)
    app.connect("source-read", link_to_pages)
    app.connect("source-read", open_notebook)
    app.connect("build-finished", write_notebooks)
    # Before napoleon, which takes sections apart.
    app.connect("autodoc-process-docstring", read_docstring, priority=100)
    app.connect("autodoc-process-signature", leave_out_fields)
    app.connect("autodoc-skip-member", skip_member)
    app.add_post_transform(DarkImages)
    app.add_post_transform(PublicNames)
