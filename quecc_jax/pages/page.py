"""Self-contained HTML pages: no network, light and dark by the reader's own preference.

`page.html` is the shell and `page.css` the stylesheet of every page; a report made of headings, paragraphs,
tables and figures needs `html_page` alone. A page with a structure of its own is a template beside its code
that extends the shell, filled by `render`. Templates escape all text that is not marked as safe.
"""

import base64
import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import jinja2

_LIBRARY = Path(__file__).parent.parent


class Section(NamedTuple):
    """A heading and the HTML fragments below it, already escaped where they hold text."""

    heading: str
    fragments: Sequence[str]


def render(template: str, **values: object) -> str:
    """A template, named by its path inside the library as in `pages/page.html` or beside it as in
    `scaling/report/assets/explorer.html`, filled with values.

    Raises jinja2.UndefinedError if the template uses a value that is not given.
    """
    return _templates().get_template(template).render(values)


def html_page(title: str, sections: Iterable[Section], lead: str = "") -> str:
    """The whole document. `title`, `lead` and headings are plain text."""
    return render("pages/page.html", title=title, sections=sections, lead=lead)


def part(macro: str, *values: object) -> str:
    """A macro of `pages/parts.html`, filled with values."""
    return str(getattr(_templates().get_template("pages/parts.html").module, macro)(*values))


def figure_html(light: str | bytes, dark: str | bytes, alt: str, caption: str = "") -> str:
    """A figure in two renderings, each SVG text or PNG bytes; the reader's preference picks one. `alt`, unlike
    that of every other figure of its page, says what it shows."""
    return part("figure", _figure_uri(light), _figure_uri(dark), alt, caption)


def table_html(rows: Iterable[Sequence[object]], header: Sequence[object], label: str) -> str:
    """A table of plain values: the first column names its rows, columns of sentences wrap, and a table that is
    wider than its page scrolls.

    `label` names it to those who do not see it, unlike every other table of its page.

    Raises ValueError if a row has not as many cells as the header.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    wide = [any(len(row[j]) > 40 for row in cells) for j in range(len(header))]

    def line(cells: Iterable[object]) -> list[tuple[str, bool]]:
        return [(str(cell), is_wide) for cell, is_wide in zip(cells, wide, strict=True)]

    return part("table", label, line(header), [line(row) for row in cells])


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph; kind "note", "muted" or "formula" sets its look."""
    return part("paragraph", text, kind)


def bullets(items: Iterable[str], kind: str = "") -> str:
    """Plain sentences as a list; kind "note" sets it apart."""
    return part("bullets", items, kind)


def data_uri(content: bytes, kind: str) -> str:
    """An image inside the page; `kind` is its subtype of image, as in "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes a file that is never seen half-written; creates its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@functools.cache
def _templates() -> "jinja2.Environment":
    # Imported here: a command's --help needs no page.
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([_LIBRARY, _LIBRARY.parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _figure_uri(image: str | bytes) -> str:
    return data_uri(image.encode(), "svg+xml") if isinstance(image, str) else data_uri(image, "png")
