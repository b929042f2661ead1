"""A table of cases: what the owner of a file gives, and what comes out here."""

from collections.abc import Callable
from typing import Any

import pytest

ROWS = pytest.StashKey[list[tuple[str, str, str, str]]]()


@pytest.fixture
def conforms(request: pytest.FixtureRequest) -> Callable[[str, str, Any, Any], None]:
    """conforms(kind, case, expected, obtained) adds a row to the table and asserts that both are equal."""

    def check(kind: str, case: str, expected: Any, obtained: Any) -> None:
        request.config.stash.setdefault(ROWS, []).append((kind, case, repr(expected), repr(obtained)))
        assert obtained == expected

    return check


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("conformance")
    table: list[tuple[str, ...]] = [("", "kind", "case", "expected", "obtained")]
    table += [("ok" if want == got else "NO", kind, case, want, got) for kind, case, want, got in rows]
    table = [tuple(_short(cell) for cell in row) for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())
    bad = sum(want != got for _, _, want, got in rows)
    terminalreporter.write_line(f"{len(rows)} cases, {len(rows) - bad} as expected, {bad} not")


def _short(text: str, most: int = 60) -> str:
    """The text's end is where prompts differ."""
    return text if len(text) <= most else f"{text[: most // 2 - 2]} .. {text[-most // 2 + 2 :]}"
