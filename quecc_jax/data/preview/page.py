"""Inspected rows as one self-contained page, light and dark."""

import base64
import html
import io

import numpy as np
from PIL import Image

from quecc_jax.data.preview.rows import Conversation, Row, Seen, Span, View
from quecc_jax.pages.page import Section, html_page, table_html

_STYLE = """
main { max-width: 62rem; }
:root { --loss: #0a6b3d; --loss-paper: #d9f2e3; --slot: #0b5a8a; --slot-paper: #d8ecf8; --bad: #a3202f; }
@media (prefers-color-scheme: dark) { :root { --loss: #8fe0b4; --loss-paper: #123a27; --slot: #9bd3f5;
  --slot-paper: #10324a; --bad: #ff8c98; } }
.bar { display: flex; height: 1.1rem; border-radius: 4px; overflow: hidden; background: var(--soft);
  border: 1px solid var(--line); margin: .6rem 0; }
.bar span { border-right: 2px solid var(--paper); background: var(--muted); opacity: .55; }
.bar span.answer { background: var(--loss); opacity: .9; }
.bar span.picture { background: var(--slot); opacity: .9; }
.bar span.end { border-right: 3px solid var(--accent); }
.talk { border-left: 3px solid var(--accent); padding: .2rem 0 .2rem 1rem; margin: 1.1rem 0; }
.talk .head { font-size: .88rem; color: var(--muted); overflow-wrap: anywhere; }
.talk .head b { color: var(--ink); }
.said { white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0; line-height: 1.75; }
.said .prompt { color: var(--muted); }
.said .answer { background: var(--loss-paper); color: var(--loss); border-radius: 3px; padding: .1em .25em; }
.said .picture { background: var(--slot-paper); color: var(--slot); border-radius: 3px; padding: .1em .4em;
  font-size: .85em; white-space: nowrap; }
.body { display: flex; flex-wrap: wrap; gap: .4rem 1.25rem; }
.body .said { flex: 1 1 22rem; min-width: 0; }
.views { display: flex; flex-wrap: wrap; align-content: flex-start; gap: 1rem; margin: .6rem 0; }
.views figure { margin: 0; width: 11rem; }
.views img { width: 11rem; height: 11rem; border-radius: 6px; image-rendering: auto;
  border: 1px solid var(--line); }
.views .none { width: 11rem; height: 4rem; border-radius: 6px; background: var(--soft); color: var(--muted);
  display: grid; place-items: center; font-size: .85rem; }
.views figcaption { font-size: .85rem; overflow-wrap: anywhere; }
.left { color: var(--bad); overflow-wrap: anywhere; }
td:last-child { text-align: left; }
"""
SIDE = 336
"""Pixels of a picture on the page, at most."""


def page(seen: Seen) -> str:
    """The whole document."""
    lead = (
        "The first rows of the first batches, read back from the arrays that the model gets: pictures as "
        "the tower sees them, and every token that carries loss marked."
    )
    facts = Section(
        "The stream",
        [
            table_html([[html.escape(name), html.escape(value)] for name, value in seen.facts], ["", ""]),
            '<p class="said"><span class="prompt">prompt, no loss</span> <span class="answer">carries loss</span>'
            ' <span class="picture">visual tokens</span></p>',
        ],
    )
    rows = [Section(f"Row {number}", [_row(row)]) for number, row in enumerate(seen.rows, start=1)]
    return html_page(f"Data of {seen.config.out}", [facts, *rows], lead, _STYLE)


def _row(row: Row) -> str:
    used = sum(talk.tokens for talk in row.talks)
    pictures = sum(len(talk.views) for talk in row.talks)
    many = len(row.talks)
    parts = [
        f'<p class="muted">batch {row.batch}, place {row.place}: {used} of {row.length} tokens '
        f"({used / row.length:.0%}), {pictures} of {row.images} picture places, {many} "
        f"conversation{'s' * (many != 1)}</p>",
        _bar(row),
    ]
    parts += [_talk(number, talk) for number, talk in enumerate(row.talks, start=1)]
    parts += [f'<p class="left">left out: {html.escape(why)}</p>' for why in row.left_out]
    return "\n".join(parts)


def _bar(row: Row) -> str:
    """The row to scale: prompts, answers, pictures, the ends of segments, and padding."""
    pieces = []
    for talk in row.talks:
        for number, span in enumerate(talk.spans, start=1):
            end = " end" * (number == len(talk.spans))
            width = f"{100 * span.tokens / row.length:.3f}%"
            pieces.append(
                f'<span class="{span.kind}{end}" style="width:{width}" '
                f'title="{span.kind}, {span.tokens} tokens"></span>'
            )
    return f'<div class="bar" role="img" aria-label="the row to scale">{"".join(pieces)}</div>'


def _talk(number: int, talk: Conversation) -> str:
    head = (
        f"<b>segment {number}</b> {html.escape(talk.where)}: {talk.tokens} tokens, {talk.learned} of "
        "them carry loss"
    )
    views = "".join(_view(view) for view in talk.views)
    views = f'<div class="views">{views}</div>' if views else ""
    said = " ".join(_span(span) for span in talk.spans)
    body = f'<div class="body">{views}<div class="said">{said}</div></div>'
    return f'<div class="talk"><div class="head">{head}</div>{body}</div>'


def _span(span: Span) -> str:
    return f'<span class="{span.kind}">{html.escape(span.text)}</span>'


def _view(view: View) -> str:
    if view.pixels is None:
        shown = '<div class="none">cached features</div>'
    else:
        shown = f'<img src="{_data_uri(view.pixels)}" alt="the picture as the tower sees it">'
    return (
        f"<figure>{shown}<figcaption>query, {view.tokens} tokens: <i>{html.escape(view.query)}</i>"
        "</figcaption></figure>"
    )


def _data_uri(pixels: np.ndarray) -> str:
    image, held = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE))
    image.save(held, "PNG" if max(image.size) < 128 else "JPEG", quality=88)
    kind = "png" if max(image.size) < 128 else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(held.getvalue()).decode()}"
