"""What `import quecc_jax` offers, and that its own examples, README's and those of docs/start.md run."""

import re
import textwrap
from pathlib import Path

import pytest

import quecc_jax

ROOT = Path(__file__).parents[1]
OLD = ROOT / "tests/compat/v0_1"


@pytest.mark.parametrize("name", quecc_jax.__all__)
def test_every_public_name_is_there(name):
    assert getattr(quecc_jax, name).__name__ == name
    assert name in dir(quecc_jax)


def test_other_names_are_missing_as_usual():
    with pytest.raises(AttributeError, match="module 'quecc_jax' has no attribute 'nothing'"):
        quecc_jax.nothing  # noqa: B018


WRITTEN = [
    example
    for page in ("README.md", "docs/start.md")
    for example in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    if "quecc_jax" in example
]


@pytest.mark.parametrize(
    "example", [*WRITTEN, textwrap.dedent((quecc_jax.__doc__ or "").split(":\n\n", 1)[1])]
)
def test_examples_run_as_they_stand(example, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    example = re.sub(r'runs/demo/[^"/]*/[^"/]*/stage2', str(OLD / "run"), example)
    exec(example.replace("mosaic.png", str(OLD / "data/0.png")), {})
    assert capsys.readouterr().out.strip()
