"""One self-contained HTML page: no network, light and dark by the reader's own preference.

Knows nothing about scaling laws; any report of headings, paragraphs, tables and figures fits.
"""

import base64
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1f24; --muted: #5b6470; --line: #e0e4e8;
  --soft: #f5f7f9; --accent: #b34700; }
@media (prefers-color-scheme: dark) { :root { --paper: #16191d; --ink: #e8eaed; --muted: #9aa3ad;
  --line: #2c3138; --soft: #1e2227; --accent: #ff9248; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 17px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 48rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.75rem 0 .75rem; letter-spacing: -.01em; }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p, ul { margin: .75rem 0; max-width: 42rem; }
ul { padding-left: 1.25rem; }
li { margin: .35rem 0; }
.lead { color: var(--muted); font-size: 1.1rem; }
.note { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem 1rem; }
.formula { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .95rem;
  background: var(--soft); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; white-space: nowrap; }
figure { margin: 1.25rem 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption, .muted { color: var(--muted); font-size: .92rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem 1rem .38rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 6rem; }
td.text, th.text { text-align: left; white-space: normal; min-width: 12rem; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 0; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; }
"""


class Section(NamedTuple):
    """A heading and the HTML fragments below it, already escaped where they hold text."""

    heading: str
    fragments: Sequence[str]


def html_page(title: str, sections: Iterable[Section], lead: str = "", style: str = "") -> str:
    """The whole document. `title`, `lead` and headings are plain text; `style` is further CSS."""
    body = [f"<h1>{html.escape(title)}</h1>"]
    if lead:
        body.append(f'<p class="lead">{html.escape(lead)}</p>')
    for section in sections:
        body += ["<section>", f"<h2>{html.escape(section.heading)}</h2>", *section.fragments, "</section>"]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}{style}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def figure_html(light: str | bytes, dark: str | bytes, alt: str, caption: str = "") -> str:
    """A figure in two renderings, each SVG text or PNG bytes; the reader's preference picks one."""
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}">'
        f'<img src="{_data_uri(light)}" alt="{html.escape(alt, quote=True)}"></picture>{below}</figure>'
    )


def table_html(rows: Iterable[Sequence[object]], header: Sequence[object]) -> str:
    """A table of plain values; the first column is left-aligned, columns of sentences wrap."""
    cells = [[str(cell) for cell in row] for row in rows]
    wide = [any(len(row[j]) > 40 for row in cells) for j in range(len(header))]

    def line(cells: Iterable[object], tag: str) -> str:
        marks = (' class="text"' if is_wide else "" for is_wide in wide)
        filled = zip(cells, marks, strict=True)
        return "<tr>" + "".join(f"<{tag}{m}>{html.escape(str(c))}</{tag}>" for c, m in filled) + "</tr>"

    body = "".join(line(row, "td") for row in cells)
    head = line(header, "th")
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def paragraph(text: str, kind: str = "") -> str:
    """Plain text as a paragraph; kind "note", "muted" or "formula" sets its look."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def bullets(items: Iterable[str]) -> str:
    """Plain sentences as a list."""
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


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


def _data_uri(image: str | bytes) -> str:
    kind, raw = ("svg+xml", image.encode()) if isinstance(image, str) else ("png", image)
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"
