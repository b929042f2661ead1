"""Tables for the pages in docs/."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quecc_jax.paths import write_text


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table, without a line break at its end."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def put(page: Path, mark: str, text: str) -> None:
    """Replaces what a page has between `<!-- MARK -->` and `<!-- end of MARK -->`, each on a line of its own."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, old = page.read_text().split(begin, 1)
    after = old.split(end, 1)[1]
    write_text(page, f"{before}{begin}{text}\n{end}{after}")
